#include "budget.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <queue>
#include <tuple>

namespace hot {

namespace {

// Slots bought so far, and what is left of the budget. Divides where one would multiply, lest absurd sizes wrap round.
class purse {
public:
    purse(const std::vector<layer_demand> & layers, size_t bytes) : layers_(layers), left_(bytes), slots_(layers.size(), 0) {}

    // n more slots for the layer, if the budget allows all of them.
    bool buy(size_t layer, int n) {
        const size_t price = price_of(layers_[layer]);
        if ((size_t) n > left_ / price) {
            return false;
        }
        left_ -= (size_t) n * price;
        slots_[layer] += n;
        return true;
    }

    int slots_of(size_t layer) const { return slots_[layer]; }
    const std::vector<int> & slots() const { return slots_; }

    static size_t price_of(const layer_demand & demand) { return std::max<size_t>(1, demand.expert_bytes); }

private:
    const std::vector<layer_demand> & layers_;
    size_t           left_;
    std::vector<int> slots_;
};

// A known layer's uses, most used first; nothing for an unknown one.
std::vector<double> ranked_uses(const layer_demand & layer) {
    std::vector<double> uses;
    if ((int) layer.uses.size() == layer.n_expert) {
        for (double u : layer.uses) {
            uses.push_back(std::isfinite(u) && u > 0 ? u : 0);
        }
        std::sort(uses.begin(), uses.end(), std::greater<>());
    }
    return uses;
}

// By rank; beyond a layer's last expert there is nothing to gain.
std::vector<double> mean_of(const std::vector<std::vector<double>> & ranked) {
    std::vector<double> mean;
    double n_known = 0;
    for (const std::vector<double> & uses : ranked) {
        n_known += uses.empty() ? 0 : 1;
        mean.resize(std::max(mean.size(), uses.size()), 0);
        for (size_t rank = 0; rank < uses.size(); rank++) {
            mean[rank] += uses[rank];
        }
    }
    for (double & m : mean) {
        m /= n_known;
    }
    return mean;
}

}  // namespace

std::vector<int> even_slots(const std::vector<layer_demand> & layers, size_t bytes) {
    purse share(layers, bytes);
    // a round gives every layer one slot; the first that does not reach every layer is the left-over
    for (bool complete = true, any = true; complete && any;) {
        any = false;
        for (size_t l = 0; l < layers.size(); l++) {
            if (share.slots_of(l) < layers[l].n_expert) {
                const bool bought = share.buy(l, 1);
                any      = any || bought;
                complete = complete && bought;
            }
        }
    }
    return share.slots();
}

std::vector<int> greedy_slots(const std::vector<layer_demand> & layers, size_t bytes) {
    purse share(layers, bytes);
    for (size_t l = 0; l < layers.size(); l++) {
        if (!share.buy(l, std::min(layers[l].min_slots, layers[l].n_expert))) {
            return even_slots(layers, bytes);
        }
    }

    std::vector<std::vector<double>> ranked;
    std::transform(layers.begin(), layers.end(), std::back_inserter(ranked), ranked_uses);
    const std::vector<double> mean = mean_of(ranked);

    // What a layer offers next. Equal worth goes to the layer with the fewest slots, then to the first.
    struct offer {
        double worth;
        int    slots;
        size_t layer;
        bool operator<(const offer & better) const {
            return std::tie(worth, better.slots, better.layer) < std::tie(better.worth, slots, layer);
        }
    };
    std::priority_queue<offer> offers;
    const auto put_up = [&](size_t l) {
        const int slots = share.slots_of(l);
        if (slots < layers[l].n_expert) {
            const std::vector<double> & uses = ranked[l].empty() ? mean : ranked[l];
            const double gain = slots < (int) uses.size() ? uses[slots] : 0;
            offers.push({gain / (double) purse::price_of(layers[l]), slots, l});
        }
    };
    for (size_t l = 0; l < layers.size(); l++) {
        put_up(l);
    }
    while (!offers.empty()) {
        const size_t best = offers.top().layer;
        offers.pop();
        if (share.buy(best, 1)) {  // a slot that does not fit now never will
            put_up(best);
        }
    }
    return share.slots();
}

}  // namespace hot
