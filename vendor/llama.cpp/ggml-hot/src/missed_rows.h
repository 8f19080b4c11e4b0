// What the GPU computes in the place of rows that the CPU computes.
//
// The graph on the GPU has a fixed shape, so a missed position must name some resident expert; its row is overwritten
// later. Within a token each names another one: some kernels keep one row for each expert and token. And it names one that
// no token of the batch uses, as long as there are any: some kernels treat the rows of one expert together, and round
// differently when there are more of them.
#pragma once

#include "moe_block.h"
#include "policy.h"

#include <cstdint>
#include <vector>

namespace hot {

// slot_ids[n_tokens * n_used]: slots, -1 where missed; the latter get a slot. Where too few experts are resident, a hit
// is named again if the kernels allow that, else the result is false, and `slot_ids` is of no use.
bool fill_missed_positions(std::vector<int32_t> & slot_ids, const slot_map & slots, const moe_block & block);

}  // namespace hot
