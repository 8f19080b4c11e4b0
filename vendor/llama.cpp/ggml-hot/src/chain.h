// Builds a copy of a block's chain over other weights, other expert numbers and another number of rows.
#pragma once

#include "moe_block.h"

namespace hot {

// Copies the chain into `ctx` (no_alloc): `inputs`, `ids` and `weights` (parallel to the block's) take the place of the
// block's own; every step gets the shape [width, n1, n2]. Returns the tensor that stands for block.out. No data yet.
ggml_tensor * clone_chain(ggml_context * ctx, const moe_block & block, const std::vector<ggml_tensor *> & inputs, ggml_tensor * ids,
                          const std::vector<ggml_tensor *> & weights, int64_t n1, int64_t n2);

}  // namespace hot
