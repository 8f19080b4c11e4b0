#include "expert_stream.h"

#include "ggml-backend-impl.h"

#include <algorithm>

namespace hot {

static ggml_backend_buffer_type_t buffer_type_of(ggml_backend_t gpu) {
    return ggml_backend_get_default_buffer_type(gpu);
}

static const char zeros[4096] = {};

// What a weight takes in a place: with what kernels may read behind its last row.
static size_t padded_bytes(ggml_backend_t gpu, const ggml_tensor * weight) {
    ggml_backend_buffer_type_t buft = buffer_type_of(gpu);
    return GGML_PAD(ggml_backend_buft_get_alloc_size(buft, weight), ggml_backend_buft_get_alignment(buft));
}

expert_stream::expert_stream(ggml_backend_t gpu, expert_cache & cache, stream_stats & counters)
    : gpu_(gpu), device_(ggml_backend_get_device(gpu)), cache_(cache), counters_(counters) {}

expert_stream::~expert_stream() {
    settle();
    ggml_backend_synchronize(gpu_);
}

std::vector<expert_tensor> expert_stream::weights_of(const ggml_cgraph * graph) {
    std::vector<expert_tensor> found;
    for (int i = 0; i < graph->n_nodes; i++) {
        const int source = expert_source(graph->nodes[i]);
        if (source < 0 || !in_host_memory(graph->nodes[i]->src[source])) {
            continue;
        }
        ggml_tensor * w = graph->nodes[i]->src[source];
        if (std::none_of(found.begin(), found.end(), [&](const expert_tensor & e) { return e.tensor == w; })) {
            found.push_back({w, source == 0 ? 2 : 1});
        }
    }
    return found;
}

bool expert_stream::reserve(const ggml_cgraph * graph) {
    size_t need = 0;
    for (const expert_tensor & w : weights_of(graph)) {
        need += padded_bytes(gpu_, w.tensor);
    }
    if (need <= place_bytes_) {
        return true;
    }
    settle();
    ggml_backend_synchronize(gpu_);
    for (place & p : places_) {
        p = {};
    }
    place_bytes_ = counters_.buffer_bytes = 0;
    if (!copies_) {
        copies_.reset(ggml_backend_dev_init(device_, nullptr));
    }
    const auto allocate = [&] {
        for (place & p : places_) {
            p.memory.reset(ggml_backend_alloc_buffer(gpu_, need));
            if (!p.memory) {
                return false;
            }
        }
        return true;
    };
    if (!copies_ || (!allocate() && !(cache_.make_room(2 * need) && allocate()))) {
        places_[0] = {};
        places_[1] = {};
        return false;
    }
    context_ptr ctx = make_context(1);
    for (place & p : places_) {
        // zeros where a kernel may read and no weight lies: never what another program left there
        ggml_backend_buffer_clear(p.memory.get(), 0);
        ggml_backend_buffer_set_usage(p.memory.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        p.bytes        = *ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, (int64_t) need);
        p.bytes.buffer = p.memory.get();
        p.bytes.data   = ggml_backend_buffer_get_base(p.memory.get());
        p.copied.reset(ggml_backend_event_new(device_));
        p.computed.reset(ggml_backend_event_new(device_));
        ctx = make_context(1);
    }
    place_bytes_ = need;
    counters_.buffer_bytes = 2 * need;
    for (const auto & layer : layers_) {
        bind(*layer);
    }
    GGML_LOG_INFO("ggml_hot: prefill: experts stream through 2 x %.1f MiB on %s\n", (double) need / 1048576.0, ggml_backend_dev_name(device_));
    return true;
}

// Describes the layer's copies in its place.
void expert_stream::bind(streamed_layer & layer) {
    place & p    = place_of(layer);
    layer.ctx    = make_context(layer.weights.size());
    layer.copies.clear();
    layer.offsets.clear();
    size_t at = 0;
    for (const expert_tensor & w : layer.weights) {
        ggml_tensor * copy = ggml_new_tensor(layer.ctx.get(), w.tensor->type, GGML_MAX_DIMS, w.tensor->ne);
        ggml_set_name(copy, w.tensor->name);
        copy->buffer = p.memory.get();
        copy->data   = (char *) ggml_backend_buffer_get_base(p.memory.get()) + at;
        layer.copies.push_back(copy);
        layer.offsets.push_back(at);
        at += padded_bytes(gpu_, w.tensor);
    }
}

expert_stream::streamed_layer & expert_stream::find(const ggml_cgraph * graph) {
    std::vector<expert_tensor> weights = weights_of(graph);
    streamed_layer *& known = by_weight_[weights[0].tensor->data];
    const auto same = [](const expert_tensor & a, const expert_tensor & b) { return a.tensor == b.tensor && a.dim == b.dim; };
    if (!known) {
        layers_.push_back(std::make_unique<streamed_layer>());
        known        = layers_.back().get();
        known->order = layers_.size() - 1;
    }
    if (known->weights.size() != weights.size() || !std::equal(weights.begin(), weights.end(), known->weights.begin(), same)) {
        place & p = place_of(*known);
        p.holds   = p.holds == known ? nullptr : p.holds;
        known->weights = std::move(weights);
        bind(*known);
    }
    return *known;
}

// Copies experts begin..end of a weight: from their slots, or from host memory in one go.
void expert_stream::copy_run(place & to, const streamed_layer & layer, size_t weight, int begin, int end) {
    const expert_tensor & w = layer.weights[weight];
    const size_t size = (size_t) (end - begin) * w.expert_bytes();
    ggml_backend_tensor_set_async(copies_.get(), &to.bytes, w.expert_data(begin), layer.offsets[weight] + (size_t) begin * w.expert_bytes(), size);
    counters_.uploaded_bytes += size;
}

void expert_stream::fill(streamed_layer & layer) {
    place & to = place_of(layer);
    if (to.holds == &layer) {
        return;
    }
    if (to.in_use) {
        if (to.computed) {
            ggml_backend_event_wait(copies_.get(), to.computed.get());
        } else {
            ggml_backend_synchronize(gpu_);
        }
    }
    copying_ = true;
    for (size_t i = 0; i < layer.weights.size(); i++) {
        const expert_tensor & w = layer.weights[i];
        const int n_expert = (int) w.tensor->ne[w.dim];
        for (int e = 0; e < n_expert;) {
            ggml_tensor resident;
            if (cache_.find_resident(w.tensor, e, resident)) {
                ggml_tensor target = resident;
                target.buffer = to.memory.get();
                target.data   = (char *) to.bytes.data + layer.offsets[i] + (size_t) e * w.expert_bytes();
                ggml_backend_tensor_copy_async(copies_.get(), copies_.get(), &resident, &target);
                counters_.resident_bytes += w.expert_bytes();
                e++;
                continue;
            }
            int end = e + 1;
            while (end < n_expert && !cache_.find_resident(w.tensor, end, resident)) {
                end++;
            }
            copy_run(to, layer, i, e, end);
            e = end;
        }
        // another layer's weights may have lain here: kernels read a little behind the last row
        const size_t bytes = ggml_nbytes(w.tensor), padding = padded_bytes(gpu_, w.tensor) - bytes;
        for (size_t done = 0; done < padding; done += sizeof(zeros)) {
            ggml_backend_tensor_set_async(copies_.get(), &to.bytes, zeros, layer.offsets[i] + bytes + done, std::min(sizeof(zeros), padding - done));
        }
    }
    if (to.copied) {
        ggml_backend_event_record(to.copied.get(), copies_.get());
    } else {
        ggml_backend_synchronize(copies_.get());
    }
    to.holds = &layer;
}

ggml_status expert_stream::compute(ggml_cgraph * graph) {
    streamed_layer & layer = find(graph);
    place & from = place_of(layer);
    fill(layer);
    if (from.copied) {
        ggml_backend_event_wait(gpu_, from.copied.get());
    }
    struct replaced {
        ggml_tensor ** source;
        ggml_tensor *  original;
    };
    std::vector<replaced> sources;
    for (int i = 0; i < graph->n_nodes; i++) {
        const int s = expert_source(graph->nodes[i]);
        for (size_t w = 0; s >= 0 && w < layer.weights.size(); w++) {
            ggml_tensor *& source = graph->nodes[i]->src[s];
            if (source == layer.weights[w].tensor) {
                sources.push_back({&source, source});
                source = layer.copies[w];
                break;
            }
        }
    }
    const ggml_status status = ggml_backend_graph_compute_async(gpu_, graph);
    for (const replaced & r : sources) {
        *r.source = r.original;
    }
    from.in_use = true;
    if (from.computed) {
        ggml_backend_event_record(from.computed.get(), gpu_);
    }
    counters_.blocks++;
    // The layer that follows in a batch goes into the other place meanwhile. Behind the last one nothing follows for sure.
    if (layer.order + 1 < layers_.size()) {
        fill(*layers_[layer.order + 1]);
    }
    return status;
}

void expert_stream::settle() {
    if (copying_) {
        ggml_backend_synchronize(copies_.get());
        copying_ = false;
    }
}

void expert_stream::forget() {
    settle();
    ggml_backend_synchronize(gpu_);
    by_weight_.clear();
    layers_.clear();
    for (place & p : places_) {
        p.holds = nullptr;
    }
}

}  // namespace hot
