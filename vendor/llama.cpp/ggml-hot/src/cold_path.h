// Computes the experts that are not in VRAM, on the CPU, straight from the original weights. One for all GPUs and
// contexts of a process, so that they share one pool of threads.
#pragma once

#include "cpu_kernels.h"
#include "fused_pass.h"
#include "handles.h"
#include "moe_block.h"
#include "worker_pool.h"

#include <chrono>
#include <cstdint>
#include <mutex>
#include <vector>

namespace hot {

struct cold_options {
    bool   fused = true;                    // false: always by a graph of the CPU backend
    size_t piece_bytes = 16 * 1024;         // of weights that a thread takes at a time
    std::chrono::microseconds spin{200};    // how long threads stay awake for the next layer
};

// What a call took, for rates.
struct cold_work {
    bool     fused        = false;
    uint64_t weight_bytes = 0;              // read at least once
    double   us           = 0;
};

class cold_path {
public:
    explicit cold_path(const cold_options & options = {});
    ~cold_path();
    cold_path(const cold_path &) = delete;
    cold_path & operator=(const cold_path &) = delete;

    // rows[i] = the chain of `block` for position positions[i] (= token * n_used + place among the used) with expert
    // experts[i]. inputs[k] = block.inputs[k]'s data in host memory; `rows` has positions.size() rows of out->ne[0] floats.
    ggml_status compute(const moe_block & block, int n_threads, const std::vector<const float *> & inputs, const std::vector<int> & positions,
                        const std::vector<int32_t> & experts, float * rows, cold_work * done = nullptr);

    // Computes a graph node by node, wherever its tensors lie: slow, but never wrong. All earlier work on the graph's
    // inputs must have finished. Adds the nodes computed to `computed`; stops at the first that fails.
    ggml_status compute_by_node(ggml_cgraph * graph, int n_threads, int & computed);

    size_t memory_bytes();  // of host memory that it holds

private:
    ggml_status compute_graph(const moe_block & block, int n_threads, const cold_rows & cold);
    void   use_threads(int n);
    void * next_bytes(size_t n);

    std::mutex           mutex_;

    // in one pass, where the chain and the CPU backend allow
    const bool           fused_;
    cpu_kernels          kernels_;
    fused_pass           pass_;
    worker_pool          workers_;

    // else by a graph
    backend_ptr          cpu_;
    int                  n_threads_ = 0;
    int                  pool_size_ = 0;
    void *               pool_ = nullptr;   // ggml_threadpool_t of our own: without one, each call would build and drop one
    std::vector<uint8_t> descriptions_;     // tensors and graph of one call
    std::vector<uint8_t> data_;             // intermediate results of one call
    size_t               used_ = 0;
};

}  // namespace hot
