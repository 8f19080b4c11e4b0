// The graphs that run over the slots, and the memory of their intermediate results.
#include "expert_cache.h"

#include "chain.h"
#include "stand_in.h"

#include <algorithm>
#include <iterator>

namespace hot {

bool expert_cache::reserve_scratch(size_t bytes) {
    if (scratch_ && ggml_backend_buffer_get_size(scratch_.get()) >= bytes) {
        return true;
    }
    buffer_ptr larger(ggml_backend_buft_alloc_buffer(gpu_.buffer_type(), bytes));
    if (!larger) {
        return false;
    }
    gpu_.wait();
    for (const auto & layer : layers_) {
        layer->graphs.clear();  // they point into the old one
    }
    scratch_ = std::move(larger);
    return true;
}

hot_graph * expert_cache::graph_for(cached_layer & layer, const moe_block & block) {
    if (layer.n_slots() == 0) {
        return nullptr;
    }
    const auto on_device = [&](const ggml_tensor * t) {
        return buffer_of(t) && ggml_backend_dev_supports_buft(device_, buffer_of(t)->buft);
    };
    std::vector<int64_t> shape{block.n_used, block.n_tokens};
    for (const ggml_tensor * step : block.chain) {
        shape.push_back(step->op);
        shape.insert(shape.end(), std::begin(step->op_params), std::end(step->op_params));
    }
    for (const expert_tensor & w : block.weights) {
        shape.push_back(layer.find_weight(w.tensor));
    }
    for (const ggml_tensor * input : block.inputs) {
        shape.push_back(input->ne[1]);
        shape.push_back(on_device(input));
    }
    ggml_backend_buffer_type_t buft = gpu_.buffer_type();
    const auto bind = [&](hot_graph & g) {
        for (size_t k = 0; k < g.inputs.size(); k++) {
            if (on_device(block.inputs[k])) {
                bind_stand_in(g.inputs[k], g.buffers[k], block.inputs[k], buft);
            }
        }
        bind_stand_in(g.out, g.buffers.back(), block.out, buft);
    };
    const auto known = layer.graphs.find(shape);
    if (known != layer.graphs.end()) {
        bind(known->second);
        return &known->second;
    }
    hot_graph g;
    const size_t n = block.chain.size() + block.inputs.size() + 1;
    g.ctx = make_context(n);
    ggml_context * ctx = g.ctx.get();
    std::vector<ggml_tensor *> slabs;
    for (const ggml_tensor * input : block.inputs) {
        g.inputs.push_back(ggml_new_tensor(ctx, GGML_TYPE_F32, GGML_MAX_DIMS, input->ne));
    }
    for (const expert_tensor & w : block.weights) {
        slabs.push_back(layer.slabs[layer.find_weight(w.tensor)]);
    }
    g.buffers.resize(g.inputs.size() + 1);
    g.ids = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, block.n_used, block.n_tokens);
    g.out = clone_chain(ctx, block, g.inputs, g.ids, slabs, block.n_used, block.n_tokens);
    g.graph = ggml_new_graph_custom(ctx, n, false);
    ggml_build_forward_expand(g.graph, g.out);
    bind(g);

    // lay out what is not bound, one after the other
    size_t need = 0;
    const auto place = [&](bool for_real) {
        size_t at = 0;
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
            if (t->view_src) {
                if (for_real) {
                    ggml_backend_view_init(t);
                }
            } else if (!t->data) {
                if (for_real) {
                    ggml_backend_tensor_alloc(scratch_.get(), t, (char *) ggml_backend_buffer_get_base(scratch_.get()) + at);
                }
                at += GGML_PAD(ggml_backend_buft_get_alloc_size(buft, t), ggml_backend_buft_get_alignment(buft));
            }
        }
        need = std::max(need, at);
    };
    place(false);
    if (!reserve_scratch(need)) {
        return nullptr;
    }
    place(true);
    return &layer.graphs.emplace(std::move(shape), std::move(g)).first->second;
}

}  // namespace hot
