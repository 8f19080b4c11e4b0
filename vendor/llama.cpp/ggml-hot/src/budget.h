// How many slots each layer gets out of one budget. Knows numbers only.
#pragma once

#include <cstddef>
#include <vector>

namespace hot {

struct layer_demand {
    int    n_expert     = 0;
    size_t expert_bytes = 0;       // VRAM of one slot
    int    min_slots    = 0;       // fewer are of no use (one token's choice); 0 slots is allowed all the same
    std::vector<double> uses;      // [n_expert] how often each was used, recent tokens weighing more; empty = unknown
};

// Even share: every layer the same number of slots (at most its experts), as many as fit `bytes`; what is left over
// after the even share goes to the first layers, one slot each. Layers of different expert size count by bytes.
std::vector<int> even_slots(const std::vector<layer_demand> & layers, size_t bytes);

// Global budget: first min_slots for every layer (an even share when not even those fit), then slot after slot where it
// saves the most misses for its bytes: the next slot of a layer is worth the uses of its next most used expert.
// Layers without known uses count as the mean of the others. Deterministic; never exceeds `bytes`; never more slots
// than experts.
std::vector<int> greedy_slots(const std::vector<layer_demand> & layers, size_t bytes);

}  // namespace hot
