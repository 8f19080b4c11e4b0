// Large batches: all experts of a layer pass through VRAM, and the GPU computes the whole block.
//
// A prompt uses nearly every expert of every layer, so a cache of some is no help, and the CPU is far too slow. Weights
// pass through a ring of VRAM, one after the other in the order in which a batch needs them: while the GPU computes with
// some, the next ones are copied in behind them. Experts that are resident come from their slots on a stream of their own,
// the others from host memory, neighbours in one copy.
//
//   copies   │ gate 0 │ up 0 │ down 0 │ gate 1     │ up 1    │ ...
//   GPU               │ gate │ up     │ act., down │ attention │ gate ..
#pragma once

#include "expert_cache.h"
#include "handles.h"

#include <deque>
#include <map>
#include <memory>
#include <vector>

namespace hot {

class expert_stream {
public:
    // `gpu` computes and outlives the stream; resident experts are those of `cache`. The ring has `ring_bytes`, 0: as
    // many as the largest layer needs.
    expert_stream(gpu_work & gpu, expert_cache & cache, size_t ring_bytes, stream_stats & counters);
    ~expert_stream();
    expert_stream(const expert_stream &) = delete;
    expert_stream & operator=(const expert_stream &) = delete;

    // Takes VRAM for the graph's layer, if there is too little. False when it cannot be had.
    bool reserve(const ggml_cgraph * graph);

    // Starts the graph on the GPU, every expert weight in it replaced by its copy in VRAM, and the copies of what came
    // next the last time. Reserve first.
    ggml_status compute(ggml_cgraph * graph);

    // No copy reads a slot any more.
    void settle();

    size_t host_bytes() const { return zeros_ ? ggml_backend_buffer_get_size(zeros_.get()) : 0; }

    // The weights may be gone.
    void forget();

private:
    // The expert weights of one split of the graph, in most cases of one layer, in order of first use.
    struct streamed_layer {
        std::vector<expert_tensor> weights;
        size_t                     order = 0;  // among the layers of a batch
    };
    // A weight's place in the ring.
    struct piece {
        const streamed_layer * layer;
        size_t      weight;          // index in the layer
        size_t      begin, end;      // bytes in the ring
        ggml_tensor copy;            // the weight as it lies there
        event_ptr   copied, gathered;  // recorded behind the copies from host memory, and from slots
        event_ptr   computed;        // recorded behind the last step that reads it
        bool        launched = false;  // that step is on its way
    };

    static std::vector<expert_tensor> weights_of(const ggml_cgraph * graph);
    streamed_layer & find(const ggml_cgraph * graph);
    piece * find_piece(const streamed_layer & layer, size_t weight);
    piece * bring(const streamed_layer & layer, size_t weight, const streamed_layer * needed);
    bool    make_place(size_t bytes, const streamed_layer * needed, size_t & begin);
    void    fill(piece & p);
    void    drain();
    void    look_ahead(const streamed_layer & layer);

    gpu_work &         gpu_;
    ggml_backend_dev_t device_;
    expert_cache &     cache_;
    stream_stats &     counters_;
    backend_ptr        uploads_, gathers_; // streams of their own: from host memory, and from slots
    bool               copying_ = false;   // copies may be under way
    bool               gathering_ = false; // of these, from slots
    const size_t       wanted_bytes_;
    size_t             ring_bytes_ = 0;
    buffer_ptr         ring_;
    ggml_tensor        bytes_ = {};        // all of it, for copies by offset
    buffer_ptr         zeros_;             // pinned where the GPU offers it
    std::deque<piece>  pieces_;            // in the ring, oldest first
    std::vector<piece> spare_;             // their events are used again
    std::vector<std::unique_ptr<streamed_layer>> layers_;       // in the order in which a batch meets them
    std::map<const void *, streamed_layer *>     by_weight_;    // of the first weight
};

}  // namespace hot
