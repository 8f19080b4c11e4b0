// The experts of one GPU's layers that lie in VRAM: which layers there are, how many slots each has, what is in them.
#pragma once

#include "ggml-backend-impl.h"
#include "gpu_work.h"
#include "handles.h"
#include "moe_block.h"
#include "policy.h"
#include "profile.h"
#include "settings.h"
#include "stats.h"
#include "uploader.h"

#include <map>
#include <memory>
#include <set>
#include <vector>

namespace hot {

// One layer's chain over the cached experts, for one shape of it.
struct hot_graph {
    context_ptr                ctx;
    std::vector<ggml_tensor *> inputs;   // bound to the block's at each call, or copies of those in host memory
    ggml_tensor *              ids = nullptr;  // slots instead of experts
    ggml_tensor *              out = nullptr;  // bound to the block's output at each call
    ggml_cgraph *              graph = nullptr;
    // descriptions of llama.cpp's buffers, see stand_in.h: one for each input, then one for the output
    std::vector<ggml_backend_buffer> buffers;
};

// The expert weights of one layer and their copies.
struct cached_layer {
    std::vector<expert_tensor> weights;       // the originals in host memory
    std::vector<bool>          pinned;        // as weights: whether the GPU can read the original by itself
    bool                       fetchable = false;  // whether copies on the GPU's own stream do not make the caller wait
    int                        n_expert  = 0;
    int                        min_slots = 0; // most experts that a token used
    int                        index     = 0; // among the layers in engine_stats
    uint64_t                   last_batch = 0;
    std::set<const void *>     owners;        // contexts that use it; without one it is gone

    context_ptr                ctx;
    buffer_ptr                 memory;
    std::vector<ggml_tensor *> slabs;         // as weights, with a slot where an expert was; empty without slots
    slot_map                   slots{0, 0};
    std::unique_ptr<policy>    chooser;
    std::vector<swap>          waiting;       // planned, and not started
    std::vector<uint64_t>      uses;          // [n_expert] since the start: the profile
    std::vector<double>        recent;        // [n_expert] with older uses fading: the shared budget
    std::map<std::vector<int64_t>, hot_graph> graphs;

    int    n_slots() const { return slots.n_slots(); }
    size_t slot_bytes() const;
    int    find_weight(const ggml_tensor * t) const;  // index in weights, or -1
};

class expert_cache {
public:
    // `gpu` computes and outlives the cache; `known` are uses from a profile.
    expert_cache(const settings & config, const profile & known, gpu_work & gpu, engine_stats & counters);

    // The layer that a block belongs to, which `owner` now uses. A new layer has no slots yet: slots are taken once all
    // layers are known, that is when a known one comes round again, so that VRAM is shared as it should be.
    cached_layer & find(const moe_block & block, const void * owner);

    bool seen_in_this_batch(const moe_block & block) const;

    // A context is gone, and the weights it used may be, too: layers that no other one uses are dropped.
    void release(const void * owner);

    // The layer's graph for this block's shape, bound to the block. Null when the layer has no slots, or VRAM for the
    // intermediate results ran out.
    hot_graph * graph_for(cached_layer & layer, const moe_block & block);

    // Before a batch of tokens: completed uploads become readable, and waiting ones may start again.
    void begin_batch(uint64_t batch);

    void count(cached_layer & layer, const moe_block & block, const int32_t * experts);

    // What was missed may come in, says the policy; `missed` has each expert once. Count first.
    void plan(cached_layer & layer, const std::vector<int> & missed);

    // Before the block's graph: copies up to `most` of the planned experts that were missed, on the GPU's own stream, so
    // that the graph can read them. Slots that the block reads (`in_use`, by slot) stay as they are.
    std::vector<int> fetch(cached_layer & layer, const std::vector<int> & missed, const std::vector<bool> & in_use, int most);

    working_memory working();         // intermediate results in VRAM, and what uploads pass through

    bool link_is_free() { return uploader_.backlog() == 0; }

    // Behind a block that is marked: uploads of what was planned begin, within the budget, when the GPU has read the slots.
    void start_uploads(cached_layer & layer);

    // Settles how many slots each layer has, from the settings and the VRAM that is free, and takes or gives back VRAM.
    void apportion();

    // A view of an expert's slice of `weight` in its slot; false when it is not resident.
    bool find_resident(const ggml_tensor * weight, int expert, ggml_tensor & view) const;

    // Gives up slots for `bytes` of VRAM that somebody else needs now. False when there are none.
    bool make_room(size_t bytes);
    void use_policy();                // the settings' policy, from now on
    profile uses() const;             // of all layers, those that are gone included

private:
    void   publish();                 // completed uploads become readable
    void   settle();                  // waits for all uploads
    static void add_uses(const cached_layer & layer, profile & p);
    void   forget(std::vector<std::unique_ptr<cached_layer>>::iterator layer);
    void   seed(cached_layer & layer);
    size_t bytes_of_slots(const cached_layer & layer, int n_slots) const;
    size_t budget(size_t free_bytes, bool & known) const;
    std::vector<int> shares(size_t bytes) const;
    bool   resize(cached_layer & layer, int n_slots);
    bool   reserve_scratch(size_t bytes);
    upload make_upload(cached_layer & layer, const swap & s);
    void   start(cached_layer & layer, const swap & s);
    void   watch_vram();

    const settings &   config_;
    const profile &    known_;
    gpu_work &         gpu_;
    ggml_backend_dev_t device_;
    bool               real_gpu_    = false;
    size_t             granularity_ = 0;   // bytes to which the device rounds an allocation
    engine_stats &     counters_;
    std::vector<std::unique_ptr<cached_layer>> layers_;
    std::map<const void *, cached_layer *>     by_weight_;   // by the address of any of its weights
    profile            gone_;              // uses of layers that were dropped
    buffer_ptr         scratch_;           // intermediate results of all graphs: one runs at a time
    size_t             upload_left_ = 0;   // bytes that may still be uploaded for this batch
    size_t             promised_ = 0;      // bytes that are to be left free, beside the headroom
    uint64_t           apportioned_at_ = 0, watched_at_ = 0, batch_ = 0;
    uint64_t           regrow_at_ = 0, regrow_wait_ = 64;  // batches
    bool               limited_   = false; // there was less VRAM than the settings ask for
    bool               unsettled_ = false; // layers came since slots were last apportioned
    uploader           uploader_;          // last, so that it stops before the memory it writes to goes
};

}  // namespace hot
