// What the device does with a graph: hot experts on the GPU, cold ones on the CPU, at the same time, one result.
// One engine a GPU serves all contexts of a process; it lives as long as one of them does.
#pragma once

#include "cold_path.h"
#include "expert_cache.h"
#include "expert_stream.h"
#include "gpu_work.h"
#include "handles.h"
#include "miss_split.h"
#include "settings.h"
#include "stats.h"
#include "trace.h"

#include <atomic>
#include <mutex>

namespace hot {

// What all engines of a process share.
struct common {
    cold_path     cold;
    profile       known;        // read at start
    routing_trace trace;
    std::atomic<bool> no_room_to_stream{false};  // read by the scheduler's questions, under no lock
};

class engine {
public:
    // `device` holds the cache: a GPU, or the CPU device where there is none.
    engine(const settings & config, ggml_backend_dev_t device, common & shared);
    ~engine();
    engine(const engine &) = delete;
    engine & operator=(const engine &) = delete;

    // `owner` stands for the context that computes. Total: what is not an expert block runs as it stands, on the GPU
    // where its tensors allow, else node by node on the CPU. Finished when it returns, or in order on the given stream.
    // `stream` is that of the context, or null.
    ggml_status compute(ggml_cgraph * graph, const void * owner, ggml_backend_t stream);

    // llama.cpp says the number of threads before each batch. Who never does is taken to begin a batch when a layer
    // comes round again.
    void begin_batch(int n_threads);
    void set_n_threads(int n_threads);
    void release(const void * owner);  // the context is gone

    void set(const knobs & values);
    void reset();                      // counters to zero
    engine_stats snapshot();
    profile uses();

private:
    // The routing and the inputs of one block in host memory.
    struct host_input {
        std::vector<const float *> inputs;
        const int32_t *            ids;  // [n_used, n_tokens], packed
    };

    // The block at work: its results are used and its slots unchangeable until finish_block.
    struct running_block {
        ggml_cgraph *        graph = nullptr;
        moe_block            block;
        cached_layer *       layer = nullptr;
        host_input           in;
        size_t               n_missed = 0;      // (token, expert) pairs without a slot when the block came
        phase_times          time_us;
        double               cold_done_us = 0;
    };

    ggml_status compute_block(ggml_cgraph * graph, moe_block && found, const void * owner);
    void        finish_block();
    bool        is_streamed(const ggml_cgraph * graph) const;
    ggml_status stream_blocks(ggml_cgraph * graph);
    void        trace_block();
    ggml_status compute_blocks(ggml_cgraph * graph, const void * owner);
    ggml_status compute_by_node(ggml_cgraph * graph, const std::string & reason);
    ggml_status compute_rest(ggml_cgraph * graph, int begin, int end, const std::string & reason);
    host_input  fetch_input(const moe_block & block);
    size_t      fetch_misses(const moe_block & block, cached_layer & layer, const std::vector<int> & missed);
    void        send_inputs(const moe_block & block, const hot_graph & hot, const host_input & in);
    void        send_rows(const moe_block & block, const std::vector<int> & positions, const float * rows);
    void        reserve_staging(size_t bytes);
    void        start_batch();
    void        use_threads(int n_threads);
    bool        on_device(const ggml_tensor * t) const;

    settings           config_;
    ggml_backend_dev_t device_;
    common &           shared_;
    gpu_work           gpu_;
    buffer_ptr         staging_;       // pinned where the GPU offers it
    std::vector<uint8_t> plain_staging_;
    uint8_t *          staging_data_ = nullptr;
    size_t             staging_size_ = 0;
    std::vector<int32_t> slot_ids_;
    int                n_threads_ = 0;
    uint64_t           batch_ = 0;
    bool               told_of_batches_ = false;

    running_block      running_;
    miss_split         split_;
    bool               measured_   = false;  // in this one, the GPU's parts are timed one by one

    std::mutex   mutex_;               // compute, settings and statistics exclude each other
    engine_stats stats_;
    expert_cache cache_;               // goes before the streams it uses
    expert_stream stream_;             // last: it reads the cache's slots
};

}  // namespace hot
