// Owners for ggml's C objects, so that nothing leaks on unload.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#include <memory>

namespace hot {

struct ggml_deleter {
    void operator()(ggml_context * ctx) const { ggml_free(ctx); }
    void operator()(ggml_backend * backend) const { ggml_backend_free(backend); }
    void operator()(ggml_backend_buffer * buffer) const { ggml_backend_buffer_free(buffer); }
    void operator()(ggml_backend_event * event) const { ggml_backend_event_free(event); }
};

using context_ptr = std::unique_ptr<ggml_context, ggml_deleter>;
using backend_ptr = std::unique_ptr<ggml_backend, ggml_deleter>;
using buffer_ptr  = std::unique_ptr<ggml_backend_buffer, ggml_deleter>;
using event_ptr   = std::unique_ptr<ggml_backend_event, ggml_deleter>;

// A context for the descriptions of n tensors and one graph of as many nodes; their data is bound elsewhere.
inline context_ptr make_context(size_t n) {
    return context_ptr(ggml_init({n * ggml_tensor_overhead() + ggml_graph_overhead_custom(n, false), nullptr, true}));
}

}  // namespace hot
