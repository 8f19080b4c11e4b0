#include "moe_block.h"

#include "ggml-backend-impl.h"

#include <algorithm>

namespace hot {

template <typename T> static bool contains(const std::vector<T> & items, const T & item) {
    return std::find(items.begin(), items.end(), item) != items.end();
}

// what the scheduler may give us

bool is_host_product(const ggml_tensor * product) {
    const ggml_tensor * w   = product->src[0];
    const ggml_tensor * ids = product->src[2];
    const ggml_backend_buffer_t buffer = buffer_of(w);
    // adapters (LoRA) are no model weights: they come and go while a context lives, so copies of them would go stale
    return buffer && ggml_backend_buffer_get_usage(buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS && ggml_backend_buffer_is_host(buffer) &&
           // llama.cpp's warm-up asks for all experts at once: no choice, so nothing for a cache
           ids->ne[0] < w->ne[2];
}

// The depth is bounded by the chain of sums, one for each used expert, plus the few steps of a chain.
const ggml_tensor * product_of(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_MUL_MAT_ID:
            return op;
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_GLU:
        case GGML_OP_UNARY:
        case GGML_OP_CLAMP:
        case GGML_OP_SQR:
        case GGML_OP_SCALE:
        case GGML_OP_ADD_ID:
        case GGML_OP_MUL:
            return op->src[0] ? product_of(op->src[0]) : nullptr;
        case GGML_OP_ADD: {
            // the sum over experts is ours; the residual and shared experts that join it later are not
            const ggml_tensor * right = product_of(op->src[1]);
            return right ? product_of(op->src[0]) : nullptr;
        }
        default:
            return nullptr;
    }
}

ggml_backend_dev_t home_of(const ggml_tensor * product) {
    constexpr size_t far_enough = 256;  // tensors; the router's and the norm's weights are within the first ten
    std::vector<const ggml_tensor *> upstream{product->src[1], product->src[2]};
    for (size_t i = 0; i < upstream.size() && i < far_enough; i++) {
        const ggml_tensor * t = upstream[i];
        const ggml_backend_buffer_t buffer = buffer_of(t);
        if (buffer && !ggml_backend_buffer_is_host(buffer)) {
            return ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer));
        }
        for (int s = 0; s < GGML_MAX_SRC; s++) {
            if (t->src[s] && !contains(upstream, (const ggml_tensor *) t->src[s])) {
                upstream.push_back(t->src[s]);
            }
        }
    }
    return nullptr;
}

// what is in a graph

int find_product(const ggml_cgraph * graph, int from) {
    while (from < graph->n_nodes && graph->nodes[from]->op != GGML_OP_MUL_MAT_ID) {
        from++;
    }
    return from;
}

static bool works_row_by_row(const ggml_tensor * t) {
    switch (t->op) {
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ADD_ID:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_GLU:
        case GGML_OP_UNARY:
        case GGML_OP_CLAMP:
        case GGML_OP_SQR:
        case GGML_OP_SCALE:
        case GGML_OP_MUL:
            return true;
        default:
            return false;
    }
}

// A step of the chain: one row for each (expert, token), [any, n_used, n_tokens].
static bool has_expert_rows(const ggml_tensor * t, const moe_block & b) {
    const bool shaped   = t->ne[1] == b.n_used && t->ne[2] == b.n_tokens && t->ne[3] == 1;
    const bool laid_out = is_view(t) ? (b.n_tokens == 1 || t->nb[2] == t->nb[1] * (size_t) b.n_used) : ggml_is_contiguous(t);
    return shaped && laid_out && t->type == GGML_TYPE_F32;
}

static bool is_input(const ggml_tensor * t, const moe_block & b) {
    return t->type == GGML_TYPE_F32 && ggml_is_contiguous(t) && (t->ne[1] == 1 || t->ne[1] == b.n_used) && t->ne[2] == b.n_tokens && t->ne[3] == 1;
}

static int expert_dim(const ggml_tensor * node, int source) {
    return source != expert_source(node) ? -1 : source == 0 ? 2 : 1;
}

// Files one node under the chain. Returns "" or what is wrong with it; `b` may be half changed then.
static std::string add_to_chain(ggml_tensor * node, moe_block & b) {
    if (is_view(node) && !contains(b.chain, node->src[0])) {
        return "";  // a view of something else that happens to stand here
    }
    if ((node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
        return "a step of the block is not to be computed";
    }
    if (!works_row_by_row(node)) {
        return std::string(ggml_op_desc(node)) + " stands between the products of a block";
    }
    if (!has_expert_rows(node, b)) {
        return std::string("unexpected shape of ") + ggml_op_desc(node);
    }
    for (int i = 0; i < GGML_MAX_SRC && node->src[i]; i++) {
        ggml_tensor * src = node->src[i];
        const int     dim = expert_dim(node, i);
        if (dim > 0) {
            if (!in_host_memory(src) || src->ne[dim] != b.n_expert || !ggml_is_contiguous(src) || src->view_src) {
                return std::string("expert weights of ") + ggml_op_desc(node) + " are not all in host memory, one behind the other";
            }
            if (std::none_of(b.weights.begin(), b.weights.end(), [&](const expert_tensor & w) { return w.tensor == src; })) {
                b.weights.push_back({src, dim});
            }
        } else if (src != b.ids && !contains(b.chain, src) && !contains(b.inputs, src)) {
            if (!is_input(src, b)) {
                return std::string("unexpected layout of an input of ") + ggml_op_desc(node);
            }
            b.inputs.push_back(src);
        }
    }
    b.chain.push_back(node);
    return "";
}

static int uses_within(const std::vector<ggml_tensor *> & chain, const ggml_tensor * t) {
    int uses = 0;
    for (const ggml_tensor * node : chain) {
        uses += (int) std::count(node->src, node->src + GGML_MAX_SRC, t);
    }
    return uses;
}

// Our copies of the intermediate results are not where the rest of the model would look for them.
static bool has_one_result(const ggml_cgraph * graph, const moe_block & b) {
    for (int i = b.begin; i < b.end; i++) {
        ggml_tensor * node = graph->nodes[i];
        if (!contains(b.chain, node) || node == b.chain.back()) {
            continue;
        }
        if (uses_within(b.chain, node) != ggml_node_get_use_count(graph, i) || (node->flags & GGML_TENSOR_FLAG_OUTPUT)) {
            return false;
        }
    }
    return true;
}

std::string find_moe_block(const ggml_cgraph * graph, int begin, moe_block & b) {
    b       = {};
    b.begin = begin;
    b.ids   = graph->nodes[begin]->src[2];
    b.n_expert = graph->nodes[begin]->src[0]->ne[2];
    b.n_used   = b.ids->ne[0];
    b.n_tokens = b.ids->ne[1];
    if (b.ids->type != GGML_TYPE_I32 || b.ids->nb[0] != sizeof(int32_t) || b.ids->ne[2] != 1) {
        return "unexpected layout of the routing";
    }
    // a routing's products are neighbours: another routing begins another block
    int last = begin;
    for (int i = begin; i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        if (node->op != GGML_OP_MUL_MAT_ID && node->op != GGML_OP_ADD_ID) {
            continue;
        }
        if (node->src[2] != b.ids) {
            break;
        }
        last = i;
    }
    for (b.end = begin; b.end <= last; b.end++) {
        const std::string problem = add_to_chain(graph->nodes[b.end], b);
        if (!problem.empty()) {
            return problem;
        }
    }
    // where the last products' results meet behind them (down lies in VRAM), the chain ends where they have met
    while (!has_one_result(graph, b)) {
        if (b.end >= graph->n_nodes || !works_row_by_row(graph->nodes[b.end]) || !has_expert_rows(graph->nodes[b.end], b) ||
            !add_to_chain(graph->nodes[b.end], b).empty()) {
            return "a step inside the block is used outside of it";
        }
        b.end++;
    }
    b.out = b.chain.back();
    if (!ggml_is_contiguous(b.out) || is_view(b.out)) {
        return "unexpected layout of the block's result";
    }
    return "";
}

}  // namespace hot
