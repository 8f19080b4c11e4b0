#include "agreement.h"

#include <algorithm>
#include <cmath>
#include <numeric>

double nmse(const std::vector<float> & expected, const std::vector<float> & got) {
    if (expected.size() != got.size()) {
        return 1.0;
    }
    double error = 0, power = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        error += std::pow((double) got[i] - expected[i], 2);
        power += std::pow((double) expected[i], 2);
    }
    const double result = power > 0 ? error / power : 1.0;
    return std::isfinite(result) ? result : 1.0;
}

static std::vector<double> log_softmax(const float * logits, size_t n) {
    const double top = *std::max_element(logits, logits + n);
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += std::exp(logits[i] - top);
    }
    std::vector<double> result(n);
    std::transform(logits, logits + n, result.begin(), [&](float logit) { return logit - top - std::log(sum); });
    return result;
}

std::vector<double> kl_divergence(const std::vector<float> & expected, const std::vector<float> & got, size_t n_vocab) {
    std::vector<double> result;
    for (size_t at = 0; at < expected.size(); at += n_vocab) {
        const std::vector<double> p = log_softmax(&expected[at], n_vocab), q = log_softmax(&got[at], n_vocab);
        double sum = 0;
        for (size_t i = 0; i < n_vocab; i++) {
            sum += std::exp(p[i]) * (p[i] - q[i]);
        }
        result.push_back(sum);
    }
    return result;
}

double mean(const std::vector<double> & values) {
    return values.empty() ? 0.0 : std::accumulate(values.begin(), values.end(), 0.0) / (double) values.size();
}

size_t equal_start(const std::vector<llama_token> & a, const std::vector<llama_token> & b) {
    return (size_t) (std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}
