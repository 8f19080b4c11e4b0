#include "expert_cache.h"

#include "vgpu.h"

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

expert_cache::expert_cache(const settings & config, const profile & known, gpu_work & gpu, engine_stats & counters)
    : config_(config), known_(known), gpu_(gpu), device_(gpu.device()), counters_(counters), uploader_(gpu) {
    real_gpu_    = ggml_backend_dev_type(device_) != GGML_BACKEND_DEVICE_TYPE_CPU && !is_vgpu_backend(gpu.stream());
    granularity_ = real_gpu_ ? 2 << 20 : 0;  // CUDA's for allocations of that size and more
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
        layer.fetchable = !real_gpu_ || std::all_of(layer.pinned.begin(), layer.pinned.end(), [](bool p) { return p; });
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

working_memory expert_cache::working() {
    return {scratch_ ? ggml_backend_buffer_get_size(scratch_.get()) : 0, uploader_.staging()};
}

bool expert_cache::seen_in_this_batch(const moe_block & block) const {
    const auto at = by_weight_.find(block.weights[0].tensor->data);
    return at != by_weight_.end() && at->second->last_batch == batch_;
}

void expert_cache::forget(std::vector<std::unique_ptr<cached_layer>>::iterator layer) {
    gpu_.wait();  // nothing reads its slots
    settle();
    add_uses(**layer, gone_);
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
            unsettled_ = unsettled_ || limited_;  // others may have what it had
        } else {
            ++layer;
        }
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

static bool is_guest(const swap & s) {
    return s.guest;
}

void expert_cache::plan(cached_layer & layer, const std::vector<int> & missed) {
    if (!layer.chooser || layer.n_slots() == 0) {
        return;
    }
    std::vector<swap> planned = layer.chooser->plan(layer.slots, missed);
    if (std::all_of(planned.begin(), planned.end(), is_guest)) {
        planned.insert(planned.begin(), layer.waiting.begin(), layer.waiting.end());  // what was put off may have its turn
    }
    layer.waiting = std::move(planned);
}

// Planned before, and overtaken by what happened since.
static bool is_stale(const slot_map & slots, const swap & s) {
    return slots.coming[s.slot] >= 0 || slots.slot_of[s.expert] >= 0 || slots.is_coming(s.expert);
}

std::vector<int> expert_cache::fetch(cached_layer & layer, const std::vector<int> & missed, const std::vector<bool> & in_use, int most) {
    std::vector<int>  fetched;
    std::vector<swap> later;
    for (const swap & s : layer.waiting) {
        const bool wanted = std::binary_search(missed.begin(), missed.end(), s.expert) && !in_use[s.slot] && !is_stale(layer.slots, s);
        if (!wanted || (int) fetched.size() == most) {
            later.push_back(s);
            continue;
        }
        const upload u = make_upload(layer, s);
        for (const upload::piece & p : u.pieces) {
            ggml_backend_tensor_set_async(gpu_.stream(), p.slab, p.source, p.offset, p.size);
        }
        layer.slots.arrive(s.slot);
        upload_left_ -= std::min(upload_left_, u.bytes);
        fetched.push_back(s.expert);
    }
    layer.waiting = std::move(later);
    return fetched;
}

void expert_cache::start_uploads(cached_layer & layer) {
    layer.waiting.erase(std::remove_if(layer.waiting.begin(), layer.waiting.end(), is_guest), layer.waiting.end());
    for (size_t i = 0; i < layer.waiting.size(); i++) {
        const swap & s = layer.waiting[i];
        if (is_stale(layer.slots, s)) {
            continue;
        }
        if (upload_left_ < layer.slot_bytes()) {
            // an expert larger than the whole budget goes alone
            if (upload_left_ < config_.upload_bytes || uploader_.backlog() > 0) {
                layer.waiting.erase(layer.waiting.begin(), layer.waiting.begin() + (ptrdiff_t) i);
                return;
            }
        }
        start(layer, s);
        upload_left_ -= std::min(upload_left_, layer.slot_bytes());
    }
    layer.waiting.clear();
}

// Takes the slot: what was in it is no longer read.
upload expert_cache::make_upload(cached_layer & layer, const swap & s) {
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
    return u;
}

void expert_cache::start(cached_layer & layer, const swap & s) {
    uploader_.start(make_upload(layer, s));
}

void expert_cache::add_uses(const cached_layer & layer, profile & p) {
    std::vector<double> & uses = p[layer.weights[0].tensor->name];
    uses.resize((size_t) layer.n_expert, 0);
    std::transform(layer.uses.begin(), layer.uses.end(), uses.begin(), uses.begin(), [](uint64_t n, double sum) { return (double) n + sum; });
}

profile expert_cache::uses() const {
    profile p = gone_;
    for (const auto & layer : layers_) {
        add_uses(*layer, p);
    }
    return p;
}

}  // namespace hot
