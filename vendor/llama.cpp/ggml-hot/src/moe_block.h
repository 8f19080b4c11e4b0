// Finds expert blocks in the graph that the scheduler hands us, by their structure, not by names.
//
//   x ─┬─ MUL_MAT_ID(gate, x, ids) ─┐
//      └─ MUL_MAT_ID(up,   x, ids) ─┴─ GLU ─ MUL_MAT_ID(down, ·, ids) ─ out │ MUL(weights) ─ VIEW.. ─ ADD.. ─ sum
//         `───────────────────── chain ──────────────────────────────'     │ `──────────── rest ──────────────'
//
// The chain has one row for each (token, expert) pair, and each step works row by row: so it can be computed for some
// rows here and for the others there. Merged gate and up, per-expert biases (ADD_ID) and scales, any activation, weights
// applied before the experts, and parts of a block (the rest of it in VRAM) all have this form. What stands before and
// behind the chain is computed as it stands.
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
    std::vector<ggml_tensor *> inputs;   // activations from outside: [any, 1 or n_used, n_tokens] F32, contiguous
    ggml_tensor * ids = nullptr;         // [n_used, n_tokens] I32; rows may be strided
    ggml_tensor * out = nullptr;         // [any, n_used, n_tokens] F32, the chain's last tensor
    std::vector<ggml_tensor *> chain;    // in graph order, views included, ends with out
    std::vector<expert_tensor> weights;  // in order of first use in the chain
    int     begin    = 0;                // index in the graph of the chain's first node
    int     end      = 0;                // and of the first node behind it
    int64_t n_expert = 0;
    int64_t n_used   = 0;
    int64_t n_tokens = 0;

    int64_t n_rows() const { return n_used * n_tokens; }
    // Whether all rows of a token read the same row of this input, [.., 1, n_tokens].
    static bool per_token(const ggml_tensor * input) { return input->ne[1] == 1; }
};

// The expert product that an operation is, or is a step behind (chain or sum over experts); null when it is neither.
const ggml_tensor * product_of(const ggml_tensor * op);

// Whether a product chooses among weights that lie in host memory as part of a model. llama.cpp also asks about
// weights that it only thinks of placing in a buffer of ours: those are refused, we keep copies, not originals.
bool is_host_product(const ggml_tensor * product);

// The device whose memory holds what is nearest upstream of a product (its router, the norm before it): the device
// that runs the layer. Null when nothing upstream lies in a device's memory.
ggml_backend_dev_t home_of(const ggml_tensor * product);

// Index of the first expert product at or behind node `from`; n_nodes when there is none.
int find_product(const ggml_cgraph * graph, int from);

// Fills `block` with the block that begins with the product at node `begin`. Returns "" on success, else why it is none.
std::string find_moe_block(const ggml_cgraph * graph, int begin, moe_block & block);

// Which source of a node holds a slice an expert: 0 of a MUL_MAT_ID, 1 of an ADD_ID, else -1.
inline int expert_source(const ggml_tensor * node) {
    return node->op == GGML_OP_MUL_MAT_ID ? 0 : node->op == GGML_OP_ADD_ID ? 1 : -1;
}

inline bool is_view(const ggml_tensor * t) {
    return t->op == GGML_OP_NONE || t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE;
}

// The buffer that holds a tensor's data, also for views; may be null.
inline ggml_backend_buffer_t buffer_of(const ggml_tensor * t) {
    return t->view_src ? t->view_src->buffer : t->buffer;
}

inline bool in_host_memory(const ggml_tensor * t) {
    ggml_backend_buffer_t buffer = buffer_of(t);
    return !buffer || ggml_backend_buffer_is_host(buffer);
}

}  // namespace hot
