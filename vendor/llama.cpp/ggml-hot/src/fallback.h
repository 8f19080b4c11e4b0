// Computes any graph, node by node, on the CPU, wherever its tensors lie: slow, but never wrong.
#pragma once

#include "ggml-impl.h"
#include "ggml-backend.h"

namespace hot {

// Returns the number of nodes computed. All earlier work on the graph's inputs must have finished.
int compute_on_cpu(ggml_backend_t cpu, ggml_cgraph * graph);

}  // namespace hot
