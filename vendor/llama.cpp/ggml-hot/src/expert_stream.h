// Large batches: all experts of a layer pass through VRAM, and the GPU computes the whole block.
//
// A prompt uses nearly every expert of every layer, so a cache of some is no help, and the CPU is far too slow. Two
// places in VRAM hold a whole layer's experts each: while the GPU computes from one, the next layer is copied into the
// other, resident experts from their slots, the others from host memory, neighbours in one copy.
//
//   copies   │ layer 0 │ layer 1 │ layer 2 │ ...
//   GPU                │ block 0 │ attention, block 1 │ ...
#pragma once

#include "expert_cache.h"
#include "handles.h"

#include <map>
#include <memory>
#include <vector>

namespace hot {

class expert_stream {
public:
    // `gpu` computes and outlives the stream; resident experts are those of `cache`.
    expert_stream(ggml_backend_t gpu, expert_cache & cache, stream_stats & counters);
    ~expert_stream();
    expert_stream(const expert_stream &) = delete;
    expert_stream & operator=(const expert_stream &) = delete;

    // Takes VRAM for the graph's layer, if it has too little. False when there is not enough.
    bool reserve(const ggml_cgraph * graph);

    // Starts the graph on the GPU, every expert weight in it replaced by its copy in VRAM, and the copies of the layer
    // that came next the last time. Reserve first.
    ggml_status compute(ggml_cgraph * graph);

    // No copy reads a slot or a weight any more.
    void settle();

    // The weights may be gone.
    void forget();

private:
    // The expert weights of one split of the graph, in most cases of one layer.
    struct streamed_layer {
        std::vector<expert_tensor>  weights;
        std::vector<size_t>         offsets;  // in a place, of each weight
        size_t                      order = 0;
        context_ptr                 ctx;
        std::vector<ggml_tensor *>  copies;   // as weights, in the place that the order says
    };
    struct place {
        buffer_ptr             memory;
        ggml_tensor            bytes;         // all of it, for copies by offset
        event_ptr              copied;        // recorded behind the copies into it
        event_ptr              computed;      // recorded behind the block that reads it
        bool                   in_use = false;
        const streamed_layer * holds  = nullptr;
    };

    static std::vector<expert_tensor> weights_of(const ggml_cgraph * graph);
    streamed_layer & find(const ggml_cgraph * graph);
    void             bind(streamed_layer & layer);
    void             fill(streamed_layer & layer);
    void             copy_run(place & to, const streamed_layer & layer, size_t weight, int begin, int end);
    place &          place_of(const streamed_layer & layer) { return places_[layer.order % 2]; }

    ggml_backend_t     gpu_;
    ggml_backend_dev_t device_;
    expert_cache &     cache_;
    stream_stats &     counters_;
    backend_ptr        copies_;            // a stream of its own
    bool               copying_ = false;   // copies may be under way
    size_t             place_bytes_ = 0;
    place              places_[2];
    std::vector<std::unique_ptr<streamed_layer>>    layers_;      // in the order in which a batch meets them
    std::map<const void *, streamed_layer *>        by_weight_;   // of the first weight
};

}  // namespace hot
