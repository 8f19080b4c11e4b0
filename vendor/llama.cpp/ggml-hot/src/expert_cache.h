// The experts of all layers that lie in VRAM: their slots, and the uploads that fill them.
#pragma once

#include "handles.h"
#include "ggml-backend-impl.h"
#include "moe_block.h"
#include "policy.h"
#include "settings.h"
#include "stats.h"

#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace hot {

// The chain of one layer over the cached experts, for one number of used experts and tokens.
struct hot_graph {
    context_ptr   ctx;
    buffer_ptr    memory;         // ids and the chain's intermediate results
    ggml_tensor * x   = nullptr;  // data bound to the block's input at each call
    ggml_tensor * ids = nullptr;  // slots instead of experts
    ggml_tensor * out = nullptr;  // data bound to the block's output at each call
    ggml_cgraph * graph = nullptr;
    ggml_backend_buffer x_buffer{}, out_buffer{};  // descriptions of llama.cpp's buffers, see stand_in.h
};

struct cached_layer {
    std::vector<expert_tensor> weights;  // the originals in host memory
    int                        n_expert = 0;
    int                        index    = 0;  // order of first appearance

    context_ptr                ctx;
    buffer_ptr                 memory;
    std::vector<ggml_tensor *> slabs;         // as weights, with a slot where an expert was; empty before allocation
    std::unique_ptr<slot_map>  slots;         // what may be read now
    std::unique_ptr<policy>    chooser;
    std::vector<swap>          uploading;     // on their way; not readable yet
    event_ptr                  uploaded;      // recorded behind the uploads; null when the device has no events
    std::map<std::pair<int64_t, int64_t>, hot_graph> graphs;  // by (n_used, n_tokens)

    bool allocated() const { return !slabs.empty(); }
    int  n_slots() const { return slots ? (int) slots->expert_of.size() : 0; }
};

class expert_cache {
public:
    // `gpu` computes, `copier` uploads: two streams of one device. Both outlive the cache.
    expert_cache(const settings & config, ggml_backend_t gpu, ggml_backend_t copier) : config_(config), gpu_(gpu), copier_(copier) {}

    // The layer a block belongs to. A new layer has no slots yet: they are taken once all layers are known, that is when
    // a known layer comes round again, so that VRAM is shared evenly.
    cached_layer & find(const moe_block & block, stats & counters);

    // The layer's graph for this block's shape, its input and output bound to the block's. Null when the layer has no
    // slots, or VRAM for the intermediate results ran out.
    hot_graph * graph_for(cached_layer & layer, const moe_block & block);

    // Makes finished uploads readable: the GPU waits for them, the host does not.
    void publish(cached_layer & layer);

    // Starts the swaps: the displaced experts are unreadable at once, the new ones from the next publish on.
    // The GPU must have finished reading the slots.
    void start_uploads(cached_layer & layer, const std::vector<swap> & swaps, stats & counters);

private:
    void   allocate(stats & counters);
    bool   try_allocate(cached_layer & layer, int n_slots);
    size_t bytes_of_slots(const cached_layer & layer, int n_slots) const;

    const settings & config_;
    ggml_backend_t   gpu_;
    ggml_backend_t   copier_;
    std::vector<std::unique_ptr<cached_layer>> layers_;
    std::map<const void *, cached_layer *>     by_weight_;
    bool out_of_memory_ = false;  // said once; such layers stay without slots
};

}  // namespace hot
