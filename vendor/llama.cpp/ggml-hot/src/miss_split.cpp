#include "miss_split.h"

#include <algorithm>

namespace hot {

int miss_split::fetches(int n_missed, size_t expert_bytes) const {
    const double cpu = cpu_us_per_byte_ * (double) expert_bytes, fetch = fetch_us_per_byte_ * (double) expert_bytes;
    const auto block_us = [&](int n) {
        const int on_cpu = n_missed - n;
        return std::max(hits_us_ + n * fetch, on_cpu > 0 ? on_cpu * cpu + join_us : 0);
    };
    int    best    = 0;
    double best_us = block_us(0);
    for (int n = 1; n <= n_missed; n++) {
        const double us = block_us(n);
        if (us < best_us) {
            best    = n;
            best_us = us;
        }
    }
    return best;
}

bool miss_split::wants_a_fetch() {
    constexpr int blocks_between = 256;
    if (n_fetches_ >= enough && blocks_to_probe_-- > 0) {
        return false;
    }
    blocks_to_probe_ = blocks_between;
    return true;
}

// A mean at first, then one that forgets: machines warm up and others use them, too.
void miss_split::learn(double & mean, int & n, double sample) {
    constexpr int window = 128;
    n = std::min(n + 1, window);
    mean += (std::min(sample, n > enough ? 4 * mean : sample) - mean) / n;  // a hiccup is not the rule
}

void miss_split::cpu_took(size_t bytes, double us) {
    learn(cpu_us_per_byte_, n_cpu_, us / (double) std::max<size_t>(1, bytes));
}

void miss_split::fetch_took(size_t bytes, double us) {
    learn(fetch_us_per_byte_, n_fetches_, us / (double) std::max<size_t>(1, bytes));
}

void miss_split::hits_took(double us) {
    learn(hits_us_, n_hits_, us);
}

}  // namespace hot
