// How many slots each layer has: shared out from the settings and the VRAM that is free, taken, moved and given back.
#include "expert_cache.h"

#include "budget.h"
#include "vgpu.h"

#include <algorithm>

namespace hot {

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
    ggml_backend_buffer_type_t buft = gpu_.buffer_type();
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
    const size_t kept = config_.headroom + promised_;
    const size_t most = room > kept ? room - kept : 0;
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
    gpu_.wait();  // nothing reads a slot
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
                if ((n_slots[i] > layers_[i]->n_slots()) != growing || n_slots[i] == layers_[i]->n_slots()) {
                    continue;
                }
                // growing takes room for the old slots and the new ones at once: who has some keeps them
                if (!resize(*layers_[i], n_slots[i])) {
                    limited = true;
                    fits    = growing && layers_[i]->n_slots() > 0;
                }
            }
        }
        if (fits) {
            break;
        }
    }
    limited_ = limited;
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

static ggml_tensor slot_view(const ggml_tensor * slab, int slot, int dim) {
    ggml_tensor view = *slab;
    view.ne[dim] = 1;
    for (int d = dim + 1; d < GGML_MAX_DIMS; d++) {
        view.nb[d] = view.nb[dim];
    }
    view.data = (char *) slab->data + (size_t) slot * slab->nb[dim];
    return view;
}

// Copies an expert from one slab to another of the same device.
static void copy_slot(const ggml_tensor * from, int from_slot, ggml_tensor * to, int to_slot, int dim) {
    ggml_tensor source = slot_view(from, from_slot, dim), target = slot_view(to, to_slot, dim);
    ggml_backend_tensor_copy(&source, &target);
}

bool expert_cache::find_resident(const ggml_tensor * weight, int expert, ggml_tensor & view) const {
    const auto at = by_weight_.find(weight->data);
    if (at == by_weight_.end() || at->second->n_slots() == 0) {
        return false;
    }
    const cached_layer & layer = *at->second;
    const int slot = layer.slots.slot_of[expert], index = layer.find_weight(weight);
    if (slot < 0 || index < 0) {
        return false;
    }
    view = slot_view(layer.slabs[index], slot, layer.weights[index].dim);
    return true;
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
    context_ptr ctx;
    std::vector<ggml_tensor *> slabs;
    const auto allocate = [&] {
        ctx = make_context(layer.weights.size());
        slabs.clear();
        for (const expert_tensor & w : layer.weights) {
            slabs.push_back(new_slab(ctx.get(), w, n_slots));
        }
        memory.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), gpu_.buffer_type()));
    };
    const auto release_old = [&] {
        counters_.cache_bytes -= layer.memory ? ggml_backend_buffer_get_size(layer.memory.get()) : 0;
        layer.graphs.clear();
        layer.waiting.clear();  // it names slots of the old ones
        layer.slabs.clear();
        layer.memory.reset();
        layer.slots  = slot_map(layer.n_expert, 0);
        counts.slots = 0;
    };
    if (n_slots > 0) {
        allocate();
        if (!memory && shrinking) {
            // no room for old and new at once: what was resident is uploaded again
            release_old();
            staying.clear();
            allocate();
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

bool expert_cache::make_room(size_t bytes) {
    if (counters_.cache_bytes == 0) {
        return false;
    }
    promised_ = bytes;
    apportion();
    promised_ = 0;
    return true;
}

// VRAM may have become short (llama.cpp's own pools grow, and others use the card, too), or may be there again.
void expert_cache::watch_vram() {
    constexpr size_t   tolerance  = 32 << 20;
    constexpr uint64_t batches    = 64;
    constexpr uint64_t most_batches = 64 * batches;
    if (batch_ - watched_at_ < batches || config_.headroom == 0 || (counters_.cache_bytes == 0 && !limited_)) {
        return;
    }
    watched_at_ = batch_;
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(device_, &free, &total);
    const bool scarce = free + tolerance < config_.headroom;
    const bool back   = limited_ && free > config_.headroom + 2 * tolerance && batch_ >= regrow_at_;
    if (total > 0 && (scarce || back)) {
        // what did not fit may not fit again: ask ever more rarely
        regrow_wait_ = back ? std::min(2 * regrow_wait_, most_batches) : batches;
        regrow_at_   = batch_ + regrow_wait_;
        apportion();
    }
}

}  // namespace hot
