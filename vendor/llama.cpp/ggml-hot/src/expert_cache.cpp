#include "expert_cache.h"

#include "chain.h"
#include "stand_in.h"

#include <algorithm>

namespace hot {

static bool same_weights(const std::vector<expert_tensor> & a, const std::vector<expert_tensor> & b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const expert_tensor & p, const expert_tensor & q) {
        return p.dim == q.dim && p.tensor->data == q.tensor->data && p.tensor->type == q.tensor->type &&
               ggml_are_same_shape(p.tensor, q.tensor);
    });
}

cached_layer & expert_cache::find(const moe_block & block, stats & counters) {
    cached_layer *& known = by_weight_[block.weights[0].tensor->data];
    if (known && !same_weights(known->weights, block.weights)) {
        // another model's weights at the same address: the old copies are worthless
        ggml_backend_synchronize(copier_);
        layers_.erase(std::find_if(layers_.begin(), layers_.end(), [&](const auto & layer) { return layer.get() == known; }));
        known = nullptr;
    }
    if (!known) {
        layers_.push_back(std::make_unique<cached_layer>());
        known = layers_.back().get();
        known->weights  = block.weights;
        known->n_expert = (int) block.n_expert;
        known->index    = (int) counters.layers.size();
        counters.layers.emplace_back();
    } else if (!known->allocated() && !out_of_memory_) {
        allocate(counters);
    }
    return *known;
}

// The shape of a tensor that holds n_slots slices instead of one for each expert.
static ggml_tensor * new_slab(ggml_context * ctx, const expert_tensor & w, int n_slots) {
    int64_t ne[GGML_MAX_DIMS];
    std::copy(w.tensor->ne, w.tensor->ne + GGML_MAX_DIMS, ne);
    ne[w.dim] = n_slots;
    return ggml_new_tensor(ctx, w.tensor->type, GGML_MAX_DIMS, ne);
}

size_t expert_cache::bytes_of_slots(const cached_layer & layer, int n_slots) const {
    context_ptr ctx = make_context(layer.weights.size());
    ggml_backend_buffer_type_t buft = ggml_backend_get_default_buffer_type(gpu_);
    size_t bytes = 0;
    for (const expert_tensor & w : layer.weights) {
        bytes += GGML_PAD(ggml_backend_buft_get_alloc_size(buft, new_slab(ctx.get(), w, n_slots)), ggml_backend_buft_get_alignment(buft));
    }
    return bytes;
}

bool expert_cache::try_allocate(cached_layer & layer, int n_slots) {
    layer.ctx = make_context(layer.weights.size());
    std::vector<ggml_tensor *> slabs;
    for (const expert_tensor & w : layer.weights) {
        slabs.push_back(new_slab(layer.ctx.get(), w, n_slots));
    }
    layer.memory.reset(ggml_backend_alloc_ctx_tensors(layer.ctx.get(), gpu_));
    if (!layer.memory) {
        return false;
    }
    // matrix kernels read a little past the last row, so never leave what another program left there
    ggml_backend_buffer_clear(layer.memory.get(), 0);
    ggml_backend_buffer_set_usage(layer.memory.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    layer.slabs = std::move(slabs);
    return true;
}

void expert_cache::allocate(stats & counters) {
    std::vector<cached_layer *> wanting;
    for (const auto & layer : layers_) {
        if (!layer->allocated()) {
            wanting.push_back(layer.get());
        }
    }
    ggml_backend_dev_t device = ggml_backend_get_device(gpu_);
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(device, &free, &total);
    const size_t room = free > config_.headroom ? free - config_.headroom : 0;

    // the most slots that fit what is free now; if the allocation fails all the same, somewhat fewer
    int n_slots = config_.k;
    for (; n_slots > 0; n_slots = std::min(n_slots - 1, n_slots * 15 / 16)) {
        size_t need = 0;
        for (const cached_layer * layer : wanting) {
            need += bytes_of_slots(*layer, std::min(n_slots, layer->n_expert));
        }
        if (total > 0 && need > room) {
            continue;
        }
        const bool fits = std::all_of(wanting.begin(), wanting.end(), [&](cached_layer * layer) {
            return try_allocate(*layer, std::min(n_slots, layer->n_expert));
        });
        if (fits) {
            break;
        }
        for (cached_layer * layer : wanting) {
            layer->slabs.clear();
            layer->memory.reset();
        }
    }
    if (n_slots < config_.k) {
        GGML_LOG_WARN("ggml_hot: fewer slots: wanted %d, took %d (%zu MiB free on %s, headroom %zu MiB)\n", config_.k, n_slots,
                      free >> 20, ggml_backend_dev_name(device), config_.headroom >> 20);
    }
    out_of_memory_ = n_slots == 0;
    if (out_of_memory_) {
        return;
    }
    size_t bytes = 0;
    for (cached_layer * layer : wanting) {
        const int n = std::min(n_slots, layer->n_expert);
        const int phase = layer->index * config_.interval / (int) counters.layers.size();
        layer->slots    = std::make_unique<slot_map>(layer->n_expert, n);
        layer->chooser  = make_window_policy(layer->n_expert, config_.interval, config_.hysteresis, phase);
        layer->uploaded = event_ptr(ggml_backend_event_new(device));
        bytes += ggml_backend_buffer_get_size(layer->memory.get());
    }
    counters.slots = n_slots;
    counters.cache_bytes += bytes;
    GGML_LOG_INFO("ggml_hot: cache: %zu layers x %d slots, %.1f MiB on %s\n", wanting.size(), n_slots, (double) bytes / (1 << 20),
                  ggml_backend_dev_name(device));
}

hot_graph * expert_cache::graph_for(cached_layer & layer, const moe_block & block) {
    if (!layer.allocated()) {
        return nullptr;
    }
    hot_graph & g = layer.graphs[{block.n_used, block.n_tokens}];
    const auto bind = [&] {
        bind_stand_in(g.x, g.x_buffer, block.x, ggml_backend_get_default_buffer_type(gpu_));
        bind_stand_in(g.out, g.out_buffer, block.out, ggml_backend_get_default_buffer_type(gpu_));
    };
    if (g.graph) {
        bind();
        return &g;
    }
    const size_t n = block.chain.size() + 2;
    g.ctx = make_context(n);
    ggml_context * ctx = g.ctx.get();
    g.x   = ggml_new_tensor(ctx, GGML_TYPE_F32, GGML_MAX_DIMS, block.x->ne);
    g.ids = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, block.n_used, block.n_tokens);
    g.out = clone_chain(ctx, block, g.x, g.ids, layer.slabs, block.n_used, block.n_tokens);
    g.graph = ggml_new_graph_custom(ctx, n, false);
    ggml_build_forward_expand(g.graph, g.out);
    bind();  // before the allocation, which passes by what has data already
    g.memory.reset(ggml_backend_alloc_ctx_tensors(ctx, gpu_));
    if (!g.memory) {
        layer.graphs.erase({block.n_used, block.n_tokens});
        return nullptr;
    }
    return &g;
}

void expert_cache::publish(cached_layer & layer) {
    if (layer.uploading.empty()) {
        return;
    }
    if (layer.uploaded) {
        ggml_backend_event_wait(gpu_, layer.uploaded.get());
    } else {
        ggml_backend_synchronize(copier_);
    }
    for (const swap & s : layer.uploading) {
        layer.slots->place(s.expert, s.slot);
    }
    layer.uploading.clear();
}

void expert_cache::start_uploads(cached_layer & layer, const std::vector<swap> & swaps, stats & counters) {
    for (const swap & s : swaps) {
        layer.slots->vacate(s.slot);
        for (size_t i = 0; i < layer.weights.size(); i++) {
            const expert_tensor & w    = layer.weights[i];
            ggml_tensor *         slab = layer.slabs[i];
            ggml_backend_tensor_set_async(copier_, slab, w.expert_data(s.expert), (size_t) s.slot * slab->nb[w.dim], w.expert_bytes());
            counters.uploaded_bytes += w.expert_bytes();
        }
        counters.uploads++;
    }
    layer.uploading = swaps;
    if (layer.uploaded && !swaps.empty()) {
        ggml_backend_event_record(layer.uploaded.get(), copier_);
    }
}

}  // namespace hot
