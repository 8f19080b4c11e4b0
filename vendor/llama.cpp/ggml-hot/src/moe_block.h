// Finds the expert block of a layer in the graph that the scheduler hands us, by its structure, not by names.
//
//   x ─┬─ MUL_MAT_ID(gate, x, ids) ─┐
//      └─ MUL_MAT_ID(up,   x, ids) ─┴─ GLU ─ MUL_MAT_ID(down, ·, ids) ─ out │ MUL(weights) ─ VIEW.. ─ ADD.. ─ sum
//         `───────────────────── chain ──────────────────────────────'     │ `─────────── tail ───────────────'
//
// The chain runs once per (token, expert) and is what the cache splits into hot and cold. Merged gate/up, per-expert
// biases (ADD_ID) and chains of unary operations instead of GLU have the same form. The tail runs as it stands.
#pragma once

#include "ggml-backend.h"
#include "ggml-impl.h"

#include <string>
#include <vector>

namespace hot {

// A tensor that holds one slice an expert: the weight of a MUL_MAT_ID (dim 2) or a bias of an ADD_ID (dim 1).
struct expert_tensor {
    ggml_tensor * tensor;
    int           dim;

    size_t expert_bytes() const { return tensor->nb[dim]; }
    const char * expert_data(int expert) const { return (const char *) tensor->data + (size_t) expert * tensor->nb[dim]; }
};

struct moe_block {
    ggml_tensor * x   = nullptr;         // [n_embd, 1 or n_used, n_tokens] F32, contiguous
    ggml_tensor * ids = nullptr;         // [n_used, n_tokens] I32; rows may be strided
    ggml_tensor * out = nullptr;         // [n_embd, n_used, n_tokens] F32, the chain's last tensor
    std::vector<ggml_tensor *> chain;    // in graph order, views included, ends with out
    std::vector<expert_tensor> weights;  // in order of first use in the chain
    int     tail     = 0;                // index in the graph of the first node after out
    int64_t n_expert = 0;
    int64_t n_used   = 0;
    int64_t n_tokens = 0;
};

// Whether the scheduler may give us this operation: an expert matrix product on weights in host memory for at most
// `bypass` tokens, or a step of the chain or tail behind one. `own` is the device's buffer type.
bool is_expert_op(const ggml_tensor * op, int bypass, ggml_backend_buffer_type_t own);

// Fills `block` from a whole expert block. Returns "" on success, else why the graph is not one.
std::string find_moe_block(const ggml_cgraph * graph, moe_block & block);

// The buffer that holds a tensor's data, also for views; may be null.
inline ggml_backend_buffer_t buffer_of(const ggml_tensor * t) {
    return t->view_src ? t->view_src->buffer : t->buffer;
}

inline bool in_host_memory(const ggml_tensor * t) {
    ggml_backend_buffer_t buffer = buffer_of(t);
    return !buffer || ggml_backend_buffer_is_host(buffer);
}

}  // namespace hot
