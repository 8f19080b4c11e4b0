#include "expert_stream.h"

#include "ggml-backend-impl.h"

#include <algorithm>

namespace hot {

// What a weight takes in the ring: with what kernels may read behind its last row.
static size_t padded_bytes(const gpu_work & gpu, const ggml_tensor * weight) {
    ggml_backend_buffer_type_t buft = gpu.buffer_type();
    return GGML_PAD(ggml_backend_buft_get_alloc_size(buft, weight), ggml_backend_buft_get_alignment(buft));
}

static constexpr size_t zeros_bytes = 4096;

expert_stream::expert_stream(gpu_work & gpu, expert_cache & cache, size_t ring_bytes, stream_stats & counters)
    : gpu_(gpu), device_(gpu.device()), cache_(cache), counters_(counters), wanted_bytes_(ring_bytes) {}

expert_stream::~expert_stream() {
    drain();
    gpu_.wait();
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
    size_t all = 0, largest = 0;
    for (const expert_tensor & w : weights_of(graph)) {
        const size_t bytes = padded_bytes(gpu_, w.tensor);
        all += bytes;
        largest = std::max(largest, bytes);
    }
    const size_t need = std::max(largest, wanted_bytes_ ? wanted_bytes_ : all);
    if (need <= ring_bytes_) {
        return true;
    }
    drain();
    gpu_.wait();
    pieces_.clear();
    ring_.reset();
    ring_bytes_ = counters_.buffer_bytes = 0;
    if (!uploads_) {
        uploads_ = new_stream(device_);
        gathers_ = new_stream(device_);
        ggml_backend_buffer_type_t pinned = ggml_backend_dev_host_buffer_type(device_);
        zeros_.reset(ggml_backend_buft_alloc_buffer(pinned ? pinned : ggml_backend_cpu_buffer_type(), zeros_bytes));
        if (zeros_) {
            ggml_backend_buffer_clear(zeros_.get(), 0);
        }
    }
    if (!uploads_ || !gathers_ || !zeros_) {
        return false;
    }
    ring_.reset(ggml_backend_buft_alloc_buffer(gpu_.buffer_type(), need));
    if (!ring_ && cache_.make_room(need)) {
        ring_.reset(ggml_backend_buft_alloc_buffer(gpu_.buffer_type(), need));
    }
    if (!ring_) {
        return false;
    }
    // zeros where a kernel may read and no weight lies: never what another program left there
    ggml_backend_buffer_clear(ring_.get(), 0);
    ggml_backend_buffer_set_usage(ring_.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    context_ptr ctx = make_context(1);
    bytes_        = *ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I8, (int64_t) need);
    bytes_.buffer = ring_.get();
    bytes_.data   = ggml_backend_buffer_get_base(ring_.get());
    ring_bytes_ = counters_.buffer_bytes = need;
    GGML_LOG_INFO("ggml_hot: prefill: experts stream through %.1f MiB on %s\n", (double) need / 1048576.0, ggml_backend_dev_name(device_));
    return true;
}

expert_stream::streamed_layer & expert_stream::find(const ggml_cgraph * graph) {
    std::vector<expert_tensor> weights = weights_of(graph);
    streamed_layer *& known = by_weight_[weights[0].tensor->data];
    if (!known) {
        layers_.push_back(std::make_unique<streamed_layer>());
        known        = layers_.back().get();
        known->order = layers_.size() - 1;
    }
    const auto same = [](const expert_tensor & a, const expert_tensor & b) { return a.tensor == b.tensor && a.dim == b.dim; };
    if (known->weights.size() != weights.size() || !std::equal(weights.begin(), weights.end(), known->weights.begin(), same)) {
        drain();
        gpu_.wait();
        pieces_.clear();  // some were of the layer as it was
        known->weights = std::move(weights);
    }
    return *known;
}

// the ring

expert_stream::piece * expert_stream::find_piece(const streamed_layer & layer, size_t weight) {
    for (piece & p : pieces_) {
        if (p.layer == &layer && p.weight == weight && !p.launched) {
            return &p;
        }
    }
    return nullptr;
}

// Finds room behind the newest piece, in place of the oldest ones. A piece that is still to be computed with stays, but
// when `needed` is a layer, only that layer's do.
bool expert_stream::make_place(size_t bytes, const streamed_layer * needed, size_t & begin) {
    begin = pieces_.empty() ? 0 : pieces_.back().end;
    if (begin + bytes > ring_bytes_) {
        begin = 0;
    }
    const auto in_the_way = [&](const piece & p) { return p.begin < begin + bytes && begin < p.end; };
    const auto stays      = [&](const piece & p) { return !p.launched && (!needed || p.layer == needed); };
    const auto last = std::find_if(pieces_.rbegin(), pieces_.rend(), in_the_way).base();  // behind the newest of them
    if (std::any_of(pieces_.begin(), last, stays)) {
        return false;
    }
    for (auto p = pieces_.begin(); p != last; ++p) {
        if (p->launched && p->computed) {
            ggml_backend_event_wait(uploads_.get(), p->computed.get());
            ggml_backend_event_wait(gathers_.get(), p->computed.get());
        } else if (p->launched) {
            gpu_.wait();
        } else if (p->gathered) {
            ggml_backend_event_wait(uploads_.get(), p->gathered.get());  // dropped before it was used: its copies come first
            ggml_backend_event_wait(gathers_.get(), p->copied.get());
        } else {
            drain();
        }
        spare_.push_back(std::move(*p));
    }
    pieces_.erase(pieces_.begin(), last);
    return true;
}

// Starts the copies of a weight, unless it is there already. Null when there is no room for it now.
expert_stream::piece * expert_stream::bring(const streamed_layer & layer, size_t weight, const streamed_layer * needed) {
    if (piece * known = find_piece(layer, weight)) {
        return known;
    }
    const ggml_tensor * original = layer.weights[weight].tensor;
    const size_t bytes = padded_bytes(gpu_, original);
    size_t begin = 0;
    if (!make_place(bytes, needed, begin)) {
        return nullptr;
    }
    if (spare_.empty()) {
        spare_.emplace_back();
        spare_.back().copied.reset(ggml_backend_event_new(device_));
        spare_.back().gathered.reset(ggml_backend_event_new(device_));
        spare_.back().computed.reset(ggml_backend_event_new(device_));
    }
    pieces_.push_back(std::move(spare_.back()));
    spare_.pop_back();
    piece & p  = pieces_.back();
    p.layer    = &layer;
    p.weight   = weight;
    p.begin    = begin;
    p.end      = begin + bytes;
    p.launched = false;
    p.copy        = *original;
    p.copy.buffer = ring_.get();
    p.copy.data   = (char *) bytes_.data + begin;
    p.copy.extra  = nullptr;
    fill(p);
    return &p;
}

void expert_stream::fill(piece & p) {
    const expert_tensor & w = p.layer->weights[p.weight];
    const size_t size     = w.expert_bytes();
    const int    n_expert = (int) w.tensor->ne[w.dim];
    copying_ = true;
    gathering_ = true;
    ggml_tensor resident;
    for (int e = 0; e < n_expert;) {
        if (cache_.find_resident(w.tensor, e, resident)) {
            ggml_tensor target = resident;
            target.buffer = ring_.get();
            target.data   = (char *) p.copy.data + (size_t) e * size;
            ggml_backend_tensor_copy_async(gathers_.get(), gathers_.get(), &resident, &target);
            counters_.resident_bytes += size;
            e++;
            continue;
        }
        int end = e + 1;
        while (end < n_expert && !cache_.find_resident(w.tensor, end, resident)) {
            end++;
        }
        const size_t run = (size_t) (end - e) * size;
        ggml_backend_tensor_set_async(uploads_.get(), &bytes_, w.expert_data(e), p.begin + (size_t) e * size, run);
        counters_.uploaded_bytes += run;
        e = end;
    }
    // other weights may have lain here: kernels read a little behind the last row
    for (size_t at = p.begin + ggml_nbytes(w.tensor); at < p.end; at += zeros_bytes) {
        ggml_backend_tensor_set_async(uploads_.get(), &bytes_, ggml_backend_buffer_get_base(zeros_.get()), at, std::min(zeros_bytes, p.end - at));
    }
    if (p.copied && p.gathered) {
        ggml_backend_event_record(p.copied.get(), uploads_.get());
        ggml_backend_event_record(p.gathered.get(), gathers_.get());
    } else {
        drain();
    }
}

// What a batch needs next goes into the ring, as far as there is room. Behind the last layer the first one follows: the
// next part of a long prompt, or the next prompt.
void expert_stream::look_ahead(const streamed_layer & layer) {
    for (size_t n = 1; n < layers_.size(); n++) {
        const streamed_layer & next = *layers_[(layer.order + n) % layers_.size()];
        for (size_t w = 0; w < next.weights.size(); w++) {
            if (!bring(next, w, nullptr)) {
                return;
            }
        }
    }
}

ggml_status expert_stream::compute(ggml_cgraph * graph) {
    const streamed_layer & layer = find(graph);
    gpu_.wait_on(gathers_.get());  // what was fetched into slots is there before it is read from them
    const auto uses = [&](const ggml_tensor * node, size_t weight) {
        const int s = expert_source(node);
        return s >= 0 && node->src[s] == layer.weights[weight].tensor;
    };
    // the graph in parts, each of which begins with the first step that reads another weight
    std::vector<int> begin, last_use;
    for (size_t w = 0; w < layer.weights.size(); w++) {
        int first = graph->n_nodes, last = 0;
        for (int i = 0; i < graph->n_nodes; i++) {
            if (uses(graph->nodes[i], w)) {
                first = std::min(first, i);
                last  = i;
            }
        }
        begin.push_back(w == 0 ? 0 : first);
        last_use.push_back(last);
    }
    begin.push_back(graph->n_nodes);

    struct replaced {
        ggml_tensor ** source;
        ggml_tensor *  original;
    };
    std::vector<replaced>    sources;
    std::vector<ggml_tensor> copies(layer.weights.size());
    ggml_status status = GGML_STATUS_SUCCESS;
    for (size_t w = 0; w < layer.weights.size() && status == GGML_STATUS_SUCCESS; w++) {
        piece * p = bring(layer, w, &layer);
        if (!p) {
            status = GGML_STATUS_FAILED;  // two weights that are used together do not fit
            break;
        }
        if (p->copied && p->gathered) {
            ggml_backend_event_wait(gpu_.stream(), p->copied.get());
            ggml_backend_event_wait(gpu_.stream(), p->gathered.get());
        }
        copies[w] = p->copy;
        for (int i = begin[w]; i < graph->n_nodes; i++) {
            if (uses(graph->nodes[i], w)) {
                ggml_tensor *& source = graph->nodes[i]->src[expert_source(graph->nodes[i])];
                sources.push_back({&source, source});
                source = &copies[w];
            }
        }
        ggml_cgraph part = ggml_graph_view(graph, begin[w], begin[w + 1]);
        status = ggml_backend_graph_compute_async(gpu_.stream(), &part);
        for (size_t done = 0; done <= w; done++) {
            piece * of = last_use[done] < begin[w + 1] ? find_piece(layer, done) : nullptr;
            if (of) {
                of->launched = true;
                if (of->computed) {
                    ggml_backend_event_record(of->computed.get(), gpu_.stream());
                }
            }
        }
    }
    for (const replaced & r : sources) {
        *r.source = r.original;
    }
    counters_.blocks++;
    if (status == GGML_STATUS_SUCCESS) {
        look_ahead(layer);
    }
    return status;
}

void expert_stream::settle() {
    if (gathering_) {
        ggml_backend_synchronize(gathers_.get());
        gathering_ = false;
    }
}

// No copy is under way any more.
void expert_stream::drain() {
    settle();
    if (copying_) {
        ggml_backend_synchronize(uploads_.get());
        copying_ = false;
    }
}

void expert_stream::forget() {
    drain();
    gpu_.wait();
    by_weight_.clear();
    layers_.clear();
    pieces_.clear();
}

}  // namespace hot
