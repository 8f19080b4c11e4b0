#include "moe_block.h"

#include "ggml-backend.h"
#include "ggml-backend-impl.h"

#include <algorithm>

namespace hot {

static bool is_view(const ggml_tensor * t) {
    return t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE;
}

static bool is_expert_matmul(const ggml_tensor * op, int bypass, ggml_backend_buffer_type_t own) {
    if (op->op != GGML_OP_MUL_MAT_ID) {
        return false;
    }
    const ggml_tensor * w   = op->src[0];
    const ggml_tensor * ids = op->src[2];
    // a weight that llama.cpp only thinks of placing in our buffer type must go elsewhere: we keep copies, not originals
    const bool host_weight = w->op == GGML_OP_NONE && w->buffer && w->buffer->buft != own && ggml_backend_buffer_is_host(w->buffer);
    // llama.cpp's warm-up asks for all experts at once: no choice, so nothing for a cache
    return host_weight && ids->ne[1] <= bypass && ids->ne[0] < w->ne[2];
}

// The depth is bounded by the chain of sums, one for each used expert, plus the few steps of a chain.
static bool is_expert_result(const ggml_tensor * t, int bypass, ggml_backend_buffer_type_t own) {
    return t && (is_view(t) ? is_expert_result(t->src[0], bypass, own) : t->op != GGML_OP_NONE && is_expert_op(t, bypass, own));
}

bool is_expert_op(const ggml_tensor * op, int bypass, ggml_backend_buffer_type_t own) {
    switch (op->op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
            return true;
        case GGML_OP_MUL_MAT_ID:
            return is_expert_matmul(op, bypass, own);
        case GGML_OP_GLU:
        case GGML_OP_UNARY:
        case GGML_OP_CLAMP:
        case GGML_OP_SQR:
        case GGML_OP_ADD_ID:
        case GGML_OP_MUL:
            return is_expert_result(op->src[0], bypass, own);
        case GGML_OP_ADD:
            // the sum over experts is ours; the residual and shared experts that join it later are not
            return is_expert_result(op->src[0], bypass, own) && is_expert_result(op->src[1], bypass, own);
        default:
            return false;
    }
}

namespace {

template <typename T> bool contains(const std::vector<T> & items, const T & item) {
    return std::find(items.begin(), items.end(), item) != items.end();
}

// The chain's steps have one row for each (expert, token): [width, n_used, n_tokens].
bool has_expert_rows(const ggml_tensor * t, const moe_block & b) {
    const bool shaped = t->ne[1] == b.n_used && t->ne[2] == b.n_tokens && t->ne[3] == 1;
    const bool laid_out = is_view(t) ? (b.n_tokens == 1 || t->nb[2] == t->nb[1] * (size_t) b.n_used) : ggml_is_contiguous(t);
    return shaped && laid_out;
}

int expert_dim(const ggml_tensor * node, const ggml_tensor * src) {
    if (node->op == GGML_OP_MUL_MAT_ID && src == node->src[0]) {
        return 2;
    }
    return node->op == GGML_OP_ADD_ID && src == node->src[1] ? 1 : -1;
}

int uses_within(const std::vector<ggml_tensor *> & chain, const ggml_tensor * t) {
    int uses = 0;
    for (const ggml_tensor * node : chain) {
        uses += (int) std::count(node->src, node->src + GGML_MAX_SRC, t);
    }
    return uses;
}

// Files one node under the chain. Returns "" or what is wrong with it.
std::string add_to_chain(ggml_tensor * node, moe_block & b) {
    if (!has_expert_rows(node, b)) {
        return std::string("unexpected shape of ") + ggml_op_desc(node);
    }
    for (int i = 0; i < GGML_MAX_SRC && node->src[i]; i++) {
        ggml_tensor * src = node->src[i];
        if (src == b.ids || contains(b.chain, src)) {
            continue;
        }
        const int dim = expert_dim(node, src);
        if (dim > 0) {
            if (!in_host_memory(src) || src->ne[dim] != b.n_expert) {
                return std::string("expert weights of ") + ggml_op_desc(node) + " are not all in host memory";
            }
            const auto same = [&](const expert_tensor & w) { return w.tensor == src; };
            if (std::none_of(b.weights.begin(), b.weights.end(), same)) {
                b.weights.push_back({src, dim});
            }
        } else if (node->op == GGML_OP_MUL_MAT_ID && i == 1 && (!b.x || src == b.x)) {
            b.x = src;
        } else {
            return std::string(ggml_op_desc(node)) + " depends on " + (src->name[0] ? src->name : "a tensor") + " outside the block";
        }
    }
    b.chain.push_back(node);
    return "";
}

}  // namespace

std::string find_moe_block(const ggml_cgraph * graph, moe_block & b) {
    int first = -1;
    int last  = -1;
    for (int i = 0; i < graph->n_nodes; i++) {
        ggml_tensor * node = graph->nodes[i];
        if (node->op != GGML_OP_MUL_MAT_ID && node->op != GGML_OP_ADD_ID) {
            continue;
        }
        if (first < 0) {
            if (node->op != GGML_OP_MUL_MAT_ID) {
                return "the graph starts inside a block";
            }
            first = i;
            b.ids = node->src[2];
            b.n_expert = node->src[0]->ne[2];
            b.n_used   = b.ids->ne[0];
            b.n_tokens = b.ids->ne[1];
        } else if (node->src[2] != b.ids) {
            return "two routings in one graph";
        }
        last = i;
    }
    if (first < 0) {
        return "no expert matrix product in the graph";
    }
    for (int i = 0; i < first; i++) {
        if (!is_view(graph->nodes[i]) && graph->nodes[i]->op != GGML_OP_NONE) {
            return "the graph does not start with the block";
        }
    }
    for (int i = first; i <= last; i++) {
        ggml_tensor * node = graph->nodes[i];
        if ((node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
            return "a step of the block is not to be computed";
        }
        const std::string problem = add_to_chain(node, b);
        if (!problem.empty()) {
            return problem;
        }
    }
    b.out  = graph->nodes[last];
    b.tail = last + 1;
    for (int i = first; i < last; i++) {
        // our copies of the intermediate results are not where the rest of the model would look for them
        if (uses_within(b.chain, graph->nodes[i]) != ggml_node_get_use_count(graph, i) || (graph->nodes[i]->flags & GGML_TENSOR_FLAG_OUTPUT)) {
            return "a step inside the block is used outside of it";
        }
    }

    // up and down at least: a lone product is half of a block whose other half lies elsewhere
    const auto products = std::count_if(b.chain.begin(), b.chain.end(), [](ggml_tensor * t) { return t->op == GGML_OP_MUL_MAT_ID; });
    if (!b.x || products < 2) {
        return "part of a block";
    }
    if (b.x->type != GGML_TYPE_F32 || b.out->type != GGML_TYPE_F32 || !ggml_is_contiguous(b.x) || b.x->ne[2] != b.n_tokens ||
        (b.x->ne[1] != 1 && b.x->ne[1] != b.n_used)) {
        return "unexpected layout of the block's input";
    }
    return "";
}

}  // namespace hot
