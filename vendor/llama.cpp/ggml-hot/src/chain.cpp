#include "chain.h"

#include <cstring>
#include <map>

namespace hot {

ggml_tensor * clone_chain(ggml_context * ctx, const moe_block & block, const std::vector<ggml_tensor *> & inputs, ggml_tensor * ids,
                          const std::vector<ggml_tensor *> & weights, int64_t n1, int64_t n2) {
    std::map<const ggml_tensor *, ggml_tensor *> stands_for{{block.ids, ids}};
    for (size_t i = 0; i < inputs.size(); i++) {
        stands_for[block.inputs[i]] = inputs[i];
    }
    for (size_t i = 0; i < weights.size(); i++) {
        stands_for[block.weights[i].tensor] = weights[i];
    }
    for (const ggml_tensor * node : block.chain) {
        ggml_tensor * copy = ggml_new_tensor_3d(ctx, node->type, node->ne[0], n1, n2);
        copy->op = node->op;
        copy->flags |= GGML_TENSOR_FLAG_COMPUTE;
        memcpy(copy->op_params, node->op_params, sizeof(copy->op_params));
        for (int i = 0; i < GGML_MAX_SRC && node->src[i]; i++) {
            copy->src[i] = stands_for.at(node->src[i]);
        }
        if (node->view_src) {
            // a view may have come through other views: its root is what holds the data
            copy->view_src  = stands_for.at(node->view_src);
            copy->view_offs = node->view_offs;
            copy->nb[0] = node->nb[0];
            copy->nb[1] = node->nb[1];
            copy->nb[2] = node->nb[1] * (size_t) n1;
            copy->nb[3] = copy->nb[2] * (size_t) n2;
        }
        stands_for[node] = copy;
    }
    return stands_for.at(block.out);
}

}  // namespace hot
