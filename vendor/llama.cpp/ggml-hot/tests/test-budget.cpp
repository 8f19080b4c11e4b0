// Slots for each layer out of one budget, on numbers alone.
#include "../src/budget.h"
#include "check.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

using hot::even_slots;
using hot::greedy_slots;
using hot::layer_demand;

using counts = std::vector<int>;

static layer_demand layer(int n_expert, size_t expert_bytes, int min_slots = 0, std::vector<double> uses = {}) {
    layer_demand demand;
    demand.n_expert     = n_expert;
    demand.expert_bytes = expert_bytes;
    demand.min_slots    = min_slots;
    demand.uses         = std::move(uses);
    return demand;
}

static size_t bytes_of(const std::vector<layer_demand> & layers, const counts & slots) {
    size_t bytes = 0;
    for (size_t l = 0; l < layers.size(); l++) {
        bytes += (size_t) slots[l] * layers[l].expert_bytes;
    }
    return bytes;
}

static std::string text(const counts & slots) {
    std::string out;
    for (int n : slots) {
        out += std::to_string(n) + ' ';
    }
    return out;
}

static void expect(const counts & got, const counts & want, const char * what) {
    CHECK(got == want, "%s: got %s, want %s", what, text(got).c_str(), text(want).c_str());
}

// ---- even ----

static void an_even_share_is_the_same_for_all_and_the_rest_goes_to_the_first() {
    const std::vector<layer_demand> layers(4, layer(10, 100));
    expect(even_slots(layers, 1200), {3, 3, 3, 3}, "even");
    expect(even_slots(layers, 1499), {4, 4, 3, 3}, "two slots and a bit are left over");
    expect(even_slots(layers, 99), {0, 0, 0, 0}, "not even one slot");
    expect(even_slots(layers, 250), {1, 1, 0, 0}, "fewer slots than layers");
    expect(even_slots(layers, 1 << 20), {10, 10, 10, 10}, "no more than there are experts");
    expect(even_slots({}, 1000), {}, "no layers");
}

static void layers_of_different_expert_size_get_the_same_number_and_pay_by_bytes() {
    expect(even_slots({layer(8, 100), layer(8, 300)}, 1250), {3, 3}, "three each are 1200 bytes");
    expect(even_slots({layer(8, 300), layer(8, 100)}, 1300), {3, 4}, "the left-over fits the small one alone");
    expect(even_slots({layer(2, 100), layer(8, 100)}, 700), {2, 5}, "what a small layer cannot use, others can");
}

// ---- greedy ----

static void a_slot_goes_where_it_saves_the_most_misses() {
    const std::vector<layer_demand> layers = {layer(4, 10, 0, {1, 9, 1, 1}), layer(4, 10, 0, {5, 6, 7, 8})};
    expect(greedy_slots(layers, 10), {1, 0}, "9");
    expect(greedy_slots(layers, 50), {1, 4}, "9 8 7 6 5");
    expect(greedy_slots(layers, 65), {2, 4}, "and then 1");
    expect(greedy_slots(layers, 1000), {4, 4}, "all there are");
}

static void bytes_decide_between_equal_uses() {
    const std::vector<layer_demand> layers = {layer(3, 20, 0, {6, 6, 6}), layer(3, 10, 0, {4, 4, 4})};
    expect(greedy_slots(layers, 30), {0, 3}, "0.4 uses a byte against 0.3");
    expect(greedy_slots(layers, 59), {1, 3}, "what is left over does not buy a second");
}

static void a_slot_too_large_for_the_rest_leaves_it_to_a_smaller_one() {
    const std::vector<layer_demand> layers = {layer(2, 50, 0, {900, 800}), layer(4, 10, 0, {1, 1, 1, 1})};
    expect(greedy_slots(layers, 85), {1, 3}, "the second large one does not fit");
}

static void every_layer_first_gets_its_minimum() {
    const std::vector<layer_demand> layers = {layer(8, 10, 2, {9, 9, 9, 9, 9, 9, 9, 9}), layer(8, 10, 2, {0, 0, 0, 0, 0, 0, 0, 1})};
    expect(greedy_slots(layers, 60), {4, 2}, "two for the idle layer, the rest for the busy one");
    expect(greedy_slots(layers, 35), {2, 1}, "not even the minimum for all: an even share");
    expect(greedy_slots({layer(1, 10, 2, {5})}, 100), {1}, "a minimum above the experts there are");
}

static void layers_without_known_uses_count_as_the_mean() {
    // mean by rank: 6.5 4.5 2.75
    const std::vector<layer_demand> layers = {layer(3, 10, 0, {10, 7, 5.5}), layer(3, 10), layer(3, 10, 0, {2, 3, 0})};
    expect(greedy_slots(layers, 20), {2, 0, 0}, "10 7");
    expect(greedy_slots(layers, 30), {2, 1, 0}, "6.5");
    expect(greedy_slots(layers, 50), {3, 2, 0}, "5.5 4.5");
    expect(greedy_slots(layers, 70), {3, 3, 1}, "3 2.75");
}

static void nothing_known_gives_an_even_share() {
    for (size_t bytes : {0, 55, 120, 165, 1000}) {
        const std::vector<layer_demand> layers = {layer(6, 10), layer(3, 20), layer(6, 10)};
        expect(greedy_slots(layers, bytes), even_slots(layers, bytes), "unknown");
    }
}

static void equal_worth_gives_an_even_share() {
    for (double uses : {0.0, 3.0}) {
        const std::vector<layer_demand> layers(5, layer(6, 10, 0, std::vector<double>(6, uses)));
        for (size_t bytes = 0; bytes <= 310; bytes += 10) {
            expect(greedy_slots(layers, bytes), even_slots(layers, bytes), "equal");
        }
    }
}

static void useless_numbers_count_as_no_use() {
    const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
    const std::vector<layer_demand> layers = {layer(3, 10, 0, {nan, -5, inf}), layer(3, 10, 0, {1, 1, 1}), layer(3, 10, 0, {1, 2})};
    expect(greedy_slots(layers, 30), {0, 3, 0}, "only the second layer has uses; the third has them for another model");
}

static void absurd_sizes_do_not_wrap_round() {
    const size_t huge = std::numeric_limits<size_t>::max();
    const std::vector<layer_demand> layers(3, layer(512, huge / 2, 1));
    expect(even_slots(layers, huge), {1, 1, 0}, "two halves");
    expect(greedy_slots(layers, huge), {1, 1, 0}, "two halves");
    expect(greedy_slots({layer(512, huge / 2, 4)}, huge), {2}, "four halves are not little");
    expect(even_slots({layer(2, 0)}, 0), {0}, "bytes unknown, no budget");
}

// ---- at random ----

static std::vector<layer_demand> random_layers(std::mt19937 & random, bool one_size) {
    std::vector<layer_demand> layers(1 + random() % 6);
    for (layer_demand & demand : layers) {
        demand = layer(1 + (int) (random() % 8), one_size ? 10 : 1 + random() % 30, (int) (random() % 4));
        if (random() % 4) {
            for (int e = 0; e < demand.n_expert; e++) {
                demand.uses.push_back((double) (random() % 6));
            }
        }
    }
    return layers;
}

static void a_budget_is_never_exceeded_nor_left_unspent() {
    std::mt19937 random(1);
    for (int round = 0; round < 3000; round++) {
        const auto layers = random_layers(random, false);
        const size_t budget = random() % 600;
        for (const auto & share : {even_slots, greedy_slots}) {
            const counts slots = share(layers, budget);
            CHECK(slots.size() == layers.size() && slots == share(layers, budget), "one number a layer, always the same");
            const size_t spent = bytes_of(layers, slots);
            CHECK(spent <= budget, "%zu of %zu", spent, budget);
            for (size_t l = 0; l < layers.size(); l++) {
                CHECK(slots[l] >= 0 && slots[l] <= layers[l].n_expert, "layer %zu: %d of %d", l, slots[l], layers[l].n_expert);
            }
        }
        // greedy: whoever still wants a slot cannot pay for it, unless it was an even share
        const counts slots = greedy_slots(layers, budget);
        counts minimum;
        for (const layer_demand & demand : layers) {
            minimum.push_back(std::min(demand.min_slots, demand.n_expert));
        }
        if (bytes_of(layers, minimum) > budget) {
            expect(slots, even_slots(layers, budget), "minima that do not fit");
            continue;
        }
        for (size_t l = 0; l < layers.size(); l++) {
            CHECK(slots[l] >= minimum[l], "layer %zu has %d, needs %d", l, slots[l], minimum[l]);
            CHECK(slots[l] == layers[l].n_expert || budget - bytes_of(layers, slots) < layers[l].expert_bytes, "layer %zu", l);
        }
    }
}

static void even_shares_differ_by_one_at_most() {
    std::mt19937 random(2);
    for (int round = 0; round < 2000; round++) {
        const auto layers = random_layers(random, false);
        const counts slots = even_slots(layers, random() % 600);
        const int most = *std::max_element(slots.begin(), slots.end());
        for (size_t l = 0; l < layers.size(); l++) {
            CHECK(slots[l] >= std::min(most - 1, layers[l].n_expert), "layer %zu: %s", l, text(slots).c_str());
        }
    }
}

static double hits(const std::vector<layer_demand> & layers, const counts & slots) {
    double sum = 0;
    for (size_t l = 0; l < layers.size(); l++) {
        std::vector<double> uses = layers[l].uses;
        std::sort(uses.begin(), uses.end(), std::greater<>());
        sum += std::accumulate(uses.begin(), uses.begin() + slots[l], 0.0);
    }
    return sum;
}

static double best_hits(const std::vector<layer_demand> & layers, size_t budget, counts slots = {}) {
    if (slots.size() == layers.size()) {
        return bytes_of(layers, slots) <= budget ? hits(layers, slots) : -1;
    }
    double best = -1;
    slots.push_back(0);
    for (slots.back() = 0; slots.back() <= layers[slots.size() - 1].n_expert; slots.back()++) {
        best = std::max(best, best_hits(layers, budget, slots));
    }
    return best;
}

static void with_experts_of_one_size_no_other_share_saves_more_misses() {
    std::mt19937 random(3);
    for (int round = 0; round < 100; round++) {
        std::vector<layer_demand> layers(1 + random() % 4);
        for (layer_demand & demand : layers) {
            demand = layer(1 + (int) (random() % 5), 10);
            for (int e = 0; e < demand.n_expert; e++) {
                demand.uses.push_back((double) (random() % 9));
            }
        }
        const size_t budget = random() % 200;
        const double got = hits(layers, greedy_slots(layers, budget)), best = best_hits(layers, budget);
        CHECK(got == best, "%.0f of %.0f", got, best);
    }
}

int main() {
    an_even_share_is_the_same_for_all_and_the_rest_goes_to_the_first();
    layers_of_different_expert_size_get_the_same_number_and_pay_by_bytes();
    a_slot_goes_where_it_saves_the_most_misses();
    bytes_decide_between_equal_uses();
    a_slot_too_large_for_the_rest_leaves_it_to_a_smaller_one();
    every_layer_first_gets_its_minimum();
    layers_without_known_uses_count_as_the_mean();
    nothing_known_gives_an_even_share();
    equal_worth_gives_an_even_share();
    useless_numbers_count_as_no_use();
    absurd_sizes_do_not_wrap_round();
    a_budget_is_never_exceeded_nor_left_unspent();
    even_shares_differ_by_one_at_most();
    with_experts_of_one_size_no_other_share_saves_more_misses();
    return verdict("budget");
}
