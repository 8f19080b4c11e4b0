#include "expert_cache.h"

#include "chain.h"
#include "stand_in.h"

#include <algorithm>

namespace hot {

size_t cached_layer::slot_bytes() const {
    size_t bytes = 0;
    for (const expert_tensor & w : weights) {
        bytes += w.expert_bytes();
    }
    return bytes;
}

int cached_layer::find_weight(const ggml_tensor * t) const {
    const auto same = [&](const expert_tensor & w) {
        return w.tensor->data == t->data && w.tensor->type == t->type && ggml_are_same_shape(w.tensor, t);
    };
    const auto at = std::find_if(weights.begin(), weights.end(), same);
    return at == weights.end() ? -1 : (int) (at - weights.begin());
}

expert_cache::expert_cache(const settings & config, const profile & known, ggml_backend_t gpu, engine_stats & counters)
    : config_(config), known_(known), gpu_(gpu), device_(ggml_backend_get_device(gpu)), counters_(counters), uploader_(device_) {
    const bool real_gpu = ggml_backend_dev_type(device_) != GGML_BACKEND_DEVICE_TYPE_CPU && !is_vgpu_backend(gpu);
    granularity_ = real_gpu ? 2 << 20 : 0;  // CUDA's for allocations of that size and more
}

// layers

cached_layer & expert_cache::find(const moe_block & block, const void * owner) {
    std::vector<cached_layer *> known;
    for (const expert_tensor & w : block.weights) {
        const auto at = by_weight_.find(w.tensor->data);
        if (at != by_weight_.end() && std::find(known.begin(), known.end(), at->second) == known.end()) {
            known.push_back(at->second);
        }
    }
    const auto holds_all = [&](const cached_layer & layer) {
        return std::all_of(block.weights.begin(), block.weights.end(), [&](const expert_tensor & w) { return layer.find_weight(w.tensor) >= 0; });
    };
    if (known.size() != 1 || !holds_all(*known[0])) {
        // new, or other weights at a known address, or parts of it were met before the whole: start anew
        int index = (int) counters_.layers.size();
        std::set<const void *> owners;
        for (cached_layer * old : known) {
            index = std::min(index, old->index);
            owners.insert(old->owners.begin(), old->owners.end());
            forget(std::find_if(layers_.begin(), layers_.end(), [&](const auto & layer) { return layer.get() == old; }));
        }
        layers_.push_back(std::make_unique<cached_layer>());
        cached_layer & layer = *layers_.back();
        layer.weights  = block.weights;
        layer.n_expert = (int) block.n_expert;
        layer.index    = index;
        layer.owners   = std::move(owners);
        layer.slots    = slot_map(layer.n_expert, 0);
        layer.uses.assign(layer.n_expert, 0);
        layer.recent.assign(layer.n_expert, 0);
        layer.last_batch = batch_;
        ggml_backend_buffer_type_t pinned = ggml_backend_dev_host_buffer_type(device_);
        for (const expert_tensor & w : layer.weights) {
            layer.pinned.push_back(pinned && ggml_backend_buffer_get_type(buffer_of(w.tensor)) == pinned);
            by_weight_[w.tensor->data] = &layer;
        }
        if (index == (int) counters_.layers.size()) {
            counters_.layers.emplace_back();
        }
        counters_.layers[index].name = layer.weights[0].tensor->name;
        unsettled_ = true;
        known = {&layer};
    } else if (unsettled_ && known[0]->last_batch != batch_) {
        apportion();
    }
    cached_layer & layer = *known[0];
    layer.owners.insert(owner);
    layer.last_batch = batch_;
    layer.min_slots  = std::max(layer.min_slots, (int) block.n_used);
    return layer;
}

bool expert_cache::seen_in_this_batch(const moe_block & block) const {
    const auto at = by_weight_.find(block.weights[0].tensor->data);
    return at != by_weight_.end() && at->second->last_batch == batch_;
}

void expert_cache::forget(std::vector<std::unique_ptr<cached_layer>>::iterator layer) {
    settle();
    counters_.cache_bytes -= (*layer)->memory ? ggml_backend_buffer_get_size((*layer)->memory.get()) : 0;
    counters_.layers[(*layer)->index].slots = 0;
    for (auto at = by_weight_.begin(); at != by_weight_.end();) {
        at = at->second == layer->get() ? by_weight_.erase(at) : std::next(at);
    }
    layers_.erase(layer);
}

void expert_cache::release(const void * owner) {
    for (auto layer = layers_.begin(); layer != layers_.end();) {
        (*layer)->owners.erase(owner);
        if ((*layer)->owners.empty()) {
            const auto at = layer - layers_.begin();
            forget(layer);
            layer = layers_.begin() + at;
        } else {
            ++layer;
        }
    }
}

// slots

// The shape of a tensor that holds n_slots slices instead of one for each expert.
static ggml_tensor * new_slab(ggml_context * ctx, const expert_tensor & w, int n_slots) {
    int64_t ne[GGML_MAX_DIMS];
    std::copy(w.tensor->ne, w.tensor->ne + GGML_MAX_DIMS, ne);
    ne[w.dim] = n_slots;
    return ggml_new_tensor(ctx, w.tensor->type, GGML_MAX_DIMS, ne);
}

size_t expert_cache::bytes_of_slots(const cached_layer & layer, int n_slots) const {
    if (n_slots == 0) {
        return 0;
    }
    context_ptr ctx = make_context(layer.weights.size());
    ggml_backend_buffer_type_t buft = ggml_backend_get_default_buffer_type(gpu_);
    size_t bytes = 0;
    for (const expert_tensor & w : layer.weights) {
        bytes += GGML_PAD(ggml_backend_buft_get_alloc_size(buft, new_slab(ctx.get(), w, n_slots)), ggml_backend_buft_get_alignment(buft));
    }
    return granularity_ ? (bytes + granularity_ - 1) / granularity_ * granularity_ : bytes;
}

// Bytes that all slots together may take: what the settings say, and what is free (as far as the device knows).
size_t expert_cache::budget(size_t free_bytes, bool & limited) const {
    size_t wanted = config_.budget;
    for (const auto & layer : layers_) {
        wanted += config_.budget ? 0 : bytes_of_slots(*layer, std::min(config_.k, layer->n_expert));
    }
    const size_t room = counters_.cache_bytes + free_bytes;
    const size_t most = room > config_.headroom ? room - config_.headroom : 0;
    limited = most < wanted;
    return std::min(wanted, most);
}

std::vector<int> expert_cache::shares(size_t bytes) const {
    std::vector<layer_demand> demands;
    size_t overhead = 0;  // what an allocation takes beside its slots
    for (const auto & layer : layers_) {
        layer_demand d;
        d.n_expert     = config_.budget ? layer->n_expert : std::min(layer->n_expert, config_.shared ? layer->n_expert : config_.k);
        d.expert_bytes = layer->slot_bytes();
        d.min_slots    = std::min(layer->min_slots, d.n_expert);
        const bool used = std::any_of(layer->recent.begin(), layer->recent.end(), [](double n) { return n > 0; });
        d.uses = used ? layer->recent : std::vector<double>{};
        overhead += bytes_of_slots(*layer, 1) - d.expert_bytes;
        demands.push_back(std::move(d));
    }
    // k slots for each are what k says, rounding and all
    const size_t usable = bytes > overhead ? bytes - overhead : 0;
    return config_.shared ? greedy_slots(demands, usable) : even_slots(demands, usable);
}

void expert_cache::apportion() {
    settle();
    unsettled_      = false;
    apportioned_at_ = batch_;
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(device_, &free, &total);
    bool limited = false;
    size_t bytes = budget(total > 0 ? free : SIZE_MAX / 4, limited);
    for (int attempt = 0; attempt < 64; attempt++, bytes -= bytes / 16) {
        std::vector<int> n_slots = shares(bytes);
        if (!limited && !config_.budget && !config_.shared) {
            std::transform(layers_.begin(), layers_.end(), n_slots.begin(), [&](const auto & l) { return std::min(config_.k, l->n_expert); });
        }
        bool fits = true;
        for (const bool growing : {false, true}) {  // what shrinks makes room for what grows
            for (size_t i = 0; i < layers_.size() && fits; i++) {
                if ((n_slots[i] > layers_[i]->n_slots()) == growing && n_slots[i] != layers_[i]->n_slots()) {
                    fits = resize(*layers_[i], n_slots[i]);
                }
            }
        }
        if (fits) {
            break;
        }
        limited = true;
    }
    int least = INT32_MAX, most = 0, sum = 0;
    for (const auto & layer : layers_) {
        least = std::min(least, layer->n_slots());
        most  = std::max(most, layer->n_slots());
        sum += layer->n_slots();
        if (!layer->chooser) {
            seed(*layer);
        }
    }
    const char * name = ggml_backend_dev_name(device_);
    const double mib  = 1024.0 * 1024.0;
    if (limited) {
        GGML_LOG_WARN("ggml_hot: fewer slots: wanted %d, took %d (%zu MiB free on %s, headroom %zu MiB)\n",
                      config_.budget ? (int) (config_.budget >> 20) : config_.k, layers_.empty() ? 0 : sum / (int) layers_.size(), free >> 20, name,
                      config_.headroom >> 20);
    }
    if (least == most) {
        GGML_LOG_INFO("ggml_hot: cache: %zu layers x %d slots, %.1f MiB on %s\n", layers_.size(), most, (double) counters_.cache_bytes / mib, name);
    } else if (!layers_.empty()) {
        GGML_LOG_INFO("ggml_hot: cache: %zu layers x %d to %d slots, %.1f MiB on %s\n", layers_.size(), least, most,
                      (double) counters_.cache_bytes / mib, name);
    }
}

// Copies an expert from one slab to another of the same device.
static void copy_slot(const ggml_tensor * from, int from_slot, ggml_tensor * to, int to_slot, int dim) {
    ggml_tensor source = *from, target = *to;
    for (ggml_tensor * t : {&source, &target}) {
        t->ne[dim] = 1;
        for (int d = dim + 1; d < GGML_MAX_DIMS; d++) {
            t->nb[d] = t->nb[dim];
        }
    }
    source.data = (char *) from->data + (size_t) from_slot * from->nb[dim];
    target.data = (char *) to->data + (size_t) to_slot * to->nb[dim];
    ggml_backend_tensor_copy(&source, &target);
}

// Gives a layer another number of slots; the most used experts stay, as far as they fit. False when VRAM ran out; the
// layer then has the slots it had, or none.
bool expert_cache::resize(cached_layer & layer, int n_slots) {
    std::vector<int> staying;
    for (int expert : layer.slots.expert_of) {
        if (expert >= 0) {
            staying.push_back(expert);
        }
    }
    std::stable_sort(staying.begin(), staying.end(), [&](int a, int b) { return layer.recent[a] > layer.recent[b]; });
    staying.resize(std::min(staying.size(), (size_t) n_slots));

    const bool shrinking = n_slots < layer.n_slots();
    layer_stats & counts = counters_.layers[layer.index];
    buffer_ptr  memory;
    context_ptr ctx = make_context(layer.weights.size());
    std::vector<ggml_tensor *> slabs;
    const auto release_old = [&] {
        counters_.cache_bytes -= layer.memory ? ggml_backend_buffer_get_size(layer.memory.get()) : 0;
        layer.graphs.clear();
        layer.slabs.clear();
        layer.memory.reset();
        layer.slots  = slot_map(layer.n_expert, 0);
        counts.slots = 0;
    };
    if (n_slots > 0) {
        for (const expert_tensor & w : layer.weights) {
            slabs.push_back(new_slab(ctx.get(), w, n_slots));
        }
        memory.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), gpu_));
        if (!memory && shrinking) {
            // no room for old and new at once: what was resident is uploaded again
            release_old();
            staying.clear();
            memory.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), gpu_));
        }
        if (!memory) {
            return false;
        }
        // matrix kernels read a little past the last row, so never leave what another program left there
        ggml_backend_buffer_clear(memory.get(), 0);
        ggml_backend_buffer_set_usage(memory.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    }
    slot_map slots(layer.n_expert, n_slots);
    for (size_t s = 0; s < staying.size(); s++) {
        for (size_t i = 0; i < layer.weights.size(); i++) {
            copy_slot(layer.slabs[i], layer.slots.slot_of[staying[s]], slabs[i], (int) s, layer.weights[i].dim);
        }
        slots.reserve(staying[s], (int) s);
        slots.arrive((int) s);
    }
    release_old();
    layer.slots  = std::move(slots);
    layer.slabs  = std::move(slabs);
    layer.memory = std::move(memory);
    layer.ctx    = std::move(ctx);
    counts.slots = n_slots;
    counters_.cache_bytes += layer.memory ? ggml_backend_buffer_get_size(layer.memory.get()) : 0;
    return true;
}

// VRAM may have become short: llama.cpp's own pools grow, and others use the card, too.
void expert_cache::watch_vram() {
    constexpr size_t   tolerance = 32 << 20;
    constexpr uint64_t batches   = 64;
    if (batch_ - watched_at_ < batches || counters_.cache_bytes == 0 || config_.headroom == 0) {
        return;
    }
    watched_at_ = batch_;
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(device_, &free, &total);
    if (total > 0 && free + tolerance < config_.headroom) {
        ggml_backend_synchronize(gpu_);
        apportion();
    }
}

// experts

void expert_cache::seed(cached_layer & layer) {
    std::vector<std::string> names;
    for (const expert_tensor & w : layer.weights) {
        names.push_back(w.tensor->name);
    }
    policy_options options{config_.policy, layer.n_expert, config_.interval, config_.hysteresis,
                           layer.index * config_.interval / (int) counters_.layers.size(), {}};
    if (const std::vector<double> * uses = find_uses(known_, names, layer.n_expert)) {
        options.uses = *uses;
    }
    layer.chooser = make_policy(options);
    if (options.uses.empty() || layer.n_slots() == 0) {
        return;
    }
    layer.waiting = layer.chooser->plan(layer.slots, {});
    if (config_.policy == policy_kind::fixed) {
        // the same experts from the first token on: runs can be repeated exactly
        for (const swap & s : layer.waiting) {
            start(layer, s);
        }
        layer.waiting.clear();
        settle();
    }
}

void expert_cache::use_policy() {
    for (const auto & layer : layers_) {
        layer->waiting.clear();
        if (layer->chooser) {
            seed(*layer);
        }
    }
}

void expert_cache::begin_batch(uint64_t batch) {
    batch_ = batch;
    publish();
    const size_t backlog = uploader_.backlog();
    upload_left_ = config_.upload_bytes > backlog ? config_.upload_bytes - backlog : 0;
    watch_vram();
    const uint64_t period = 8 * (uint64_t) config_.interval;
    if (config_.shared && batch_ - apportioned_at_ >= period && counters_.cache_bytes > 0) {
        ggml_backend_synchronize(gpu_);
        apportion();
        for (const auto & layer : layers_) {
            for (double & n : layer->recent) {
                n /= 2;
            }
        }
    }
}

void expert_cache::publish() {
    for (const upload & u : uploader_.collect()) {
        u.layer->slots.arrive(u.what.slot);
    }
}

void expert_cache::settle() {
    uploader_.drain();
    publish();
}

void expert_cache::count(cached_layer & layer, const moe_block & block, const int32_t * experts) {
    for (int64_t i = 0; i < block.n_rows(); i++) {
        layer.uses[experts[i]]++;
        layer.recent[experts[i]]++;
    }
    for (int64_t t = 0; t < block.n_tokens && layer.chooser; t++) {
        layer.chooser->count(experts + t * block.n_used, (int) block.n_used);
    }
}

void expert_cache::plan_swaps(cached_layer & layer, const std::vector<int> & missed) {
    if (!layer.chooser || layer.n_slots() == 0) {
        return;
    }
    std::vector<swap> planned = layer.chooser->plan(layer.slots, missed);
    if (planned.empty() && !layer.waiting.empty()) {
        planned = std::move(layer.waiting);
    }
    layer.waiting.clear();
    for (size_t i = 0; i < planned.size(); i++) {
        const swap & s = planned[i];
        if (layer.slots.coming[s.slot] >= 0 || layer.slots.slot_of[s.expert] >= 0 || layer.slots.is_coming(s.expert)) {
            continue;  // planned before, and overtaken by what happened since
        }
        if (upload_left_ < layer.slot_bytes()) {
            // an expert larger than the whole budget goes alone
            if (upload_left_ < config_.upload_bytes || uploader_.backlog() > 0) {
                layer.waiting.assign(planned.begin() + (ptrdiff_t) i, planned.end());
                return;
            }
        }
        start(layer, s);
        upload_left_ -= std::min(upload_left_, layer.slot_bytes());
    }
}

void expert_cache::start(cached_layer & layer, const swap & s) {
    layer_stats & counts = counters_.layers[layer.index];
    counts.evictions += layer.slots.expert_of[s.slot] >= 0;
    layer.slots.reserve(s.expert, s.slot);
    upload u{&layer, s, {}, layer.slot_bytes()};
    for (size_t i = 0; i < layer.weights.size(); i++) {
        const expert_tensor & w = layer.weights[i];
        u.pieces.push_back({layer.slabs[i], (size_t) s.slot * layer.slabs[i]->nb[w.dim], w.expert_data(s.expert), w.expert_bytes(), layer.pinned[i]});
    }
    counts.uploads++;
    counts.uploaded_bytes += u.bytes;
    uploader_.start(std::move(u));
}

void expert_cache::add_uses(profile & p) const {
    for (const auto & layer : layers_) {
        p[layer->weights[0].tensor->name] = std::vector<double>(layer->uses.begin(), layer->uses.end());
    }
}

// graphs

bool expert_cache::reserve_scratch(size_t bytes) {
    if (scratch_ && ggml_backend_buffer_get_size(scratch_.get()) >= bytes) {
        return true;
    }
    ggml_backend_synchronize(gpu_);
    for (const auto & layer : layers_) {
        layer->graphs.clear();  // they point into the old one
    }
    scratch_.reset();
    scratch_.reset(ggml_backend_alloc_buffer(gpu_, bytes));
    return scratch_ != nullptr;
}

hot_graph * expert_cache::graph_for(cached_layer & layer, const moe_block & block) {
    if (layer.n_slots() == 0) {
        return nullptr;
    }
    const auto on_device = [&](const ggml_tensor * t) {
        return buffer_of(t) && ggml_backend_dev_supports_buft(device_, buffer_of(t)->buft);
    };
    std::vector<int64_t> shape{block.n_used, block.n_tokens, (int64_t) block.chain.size(), layer.find_weight(block.weights[0].tensor)};
    for (const ggml_tensor * input : block.inputs) {
        shape.push_back(input->ne[1]);
        shape.push_back(on_device(input));
    }
    ggml_backend_buffer_type_t buft = ggml_backend_get_default_buffer_type(gpu_);
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
