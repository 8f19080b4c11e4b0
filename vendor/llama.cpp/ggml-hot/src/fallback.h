// Computes any graph, node by node, on the CPU, wherever its tensors lie: slow, but never wrong.
#pragma once

#include "ggml-impl.h"
#include "ggml-backend.h"

namespace hot {

// Adds the nodes computed to `computed`; stops at the first that fails. All earlier work on the graph's inputs must have finished.
ggml_status compute_on_cpu(ggml_backend_t cpu, ggml_cgraph * graph, int & computed);

}  // namespace hot
