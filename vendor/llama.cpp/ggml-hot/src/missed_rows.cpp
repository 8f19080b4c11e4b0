#include "missed_rows.h"

#include <algorithm>

namespace hot {

// A single token over quantized weights goes through vector kernels, row by row, on every back-end: a slot may be named
// twice. Matrix kernels keep one row for each expert and token.
static bool rows_are_independent(const moe_block & block) {
    return block.n_tokens == 1 && std::all_of(block.weights.begin(), block.weights.end(), [](const expert_tensor & w) {
        return w.dim != 2 || ggml_is_quantized(w.tensor->type);
    });
}

// From so many rows of one expert on, ggml's CPU back-end uses another kernel, whose last bits differ.
static constexpr std::ptrdiff_t most_rows = 8;

bool fill_missed_positions(std::vector<int32_t> & slot_ids, const slot_map & slots, const moe_block & block) {
    const bool may_repeat = rows_are_independent(block);
    const int  n_slots    = slots.n_slots();
    // experts that no token of the batch uses come first: then the others have the rows that they have without us
    std::vector<bool> used(n_slots, false);
    for (int32_t slot : slot_ids) {
        if (slot >= 0) {
            used[slot] = true;
        }
    }
    std::vector<int> candidates;
    for (const bool wanted : {false, true}) {
        for (int slot = 0; slot < n_slots; slot++) {
            if (slots.expert_of[slot] >= 0 && used[slot] == wanted) {
                candidates.push_back(slot);
            }
        }
    }
    for (size_t token = 0; token < slot_ids.size(); token += (size_t) block.n_used) {
        const auto begin = slot_ids.begin() + (ptrdiff_t) token, end = begin + block.n_used;
        const std::vector<int32_t> hits(begin, end);
        const auto twice = [&](int32_t slot) { return slot >= 0 && std::count(begin, end, slot) > 1; };
        if (!may_repeat && std::any_of(hits.begin(), hits.end(), twice)) {
            return false;  // the router itself chose an expert twice (GroveMoE's grouped ones)
        }
        const auto taken = [&](int slot) { return std::find(hits.begin(), hits.end(), slot) != hits.end(); };
        size_t next = 0, repeated = 0;
        for (auto position = begin; position != end; ++position) {
            if (*position >= 0) {
                continue;
            }
            while (next < candidates.size() && taken(candidates[next])) {
                next++;
            }
            if (next < candidates.size()) {
                *position = candidates[next++];
            } else if (may_repeat && std::count(begin, end, candidates[repeated % candidates.size()]) < most_rows - 1) {
                *position = candidates[repeated++ % candidates.size()];
            } else {
                return false;
            }
        }
    }
    return true;
}

}  // namespace hot
