#include "fallback.h"

#include "handles.h"
#include "moe_block.h"

#include <vector>

namespace hot {

// A stand-in for `t` with its bytes in host memory: the bytes themselves where they are, or a copy in `storage`.
static ggml_tensor host_image(const ggml_tensor * t, std::vector<uint8_t> & storage, bool fetch) {
    ggml_tensor image = *t;
    if (!in_host_memory(t)) {
        storage.resize(ggml_nbytes(t));
        if (fetch) {
            ggml_backend_tensor_get(t, storage.data(), 0, storage.size());
        }
        image.data   = storage.data();
        image.buffer = nullptr;
    }
    image.view_src = nullptr;
    return image;
}

ggml_status compute_on_cpu(ggml_backend_t cpu, ggml_cgraph * graph, int & computed) {
    for (int i = 0; i < graph->n_nodes; i++) {
        ggml_tensor * node = graph->nodes[i];
        if (is_view(node) || (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
            continue;
        }
        std::vector<uint8_t> result_bytes;
        std::vector<std::vector<uint8_t>> source_bytes(GGML_MAX_SRC);
        std::vector<ggml_tensor> sources(GGML_MAX_SRC);

        ggml_tensor image = host_image(node, result_bytes, false);
        for (int s = 0; s < GGML_MAX_SRC && node->src[s]; s++) {
            sources[s] = host_image(node->src[s], source_bytes[s], true);
            image.src[s] = &sources[s];
        }
        context_ptr ctx = make_context(1);
        ggml_cgraph * one = ggml_new_graph_custom(ctx.get(), 1, false);
        ggml_graph_add_node(one, &image);
        const ggml_status status = ggml_backend_graph_compute(cpu, one);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        if (!result_bytes.empty()) {
            ggml_backend_tensor_set(node, result_bytes.data(), 0, result_bytes.size());
        }
        computed++;
    }
    return GGML_STATUS_SUCCESS;
}

}  // namespace hot
