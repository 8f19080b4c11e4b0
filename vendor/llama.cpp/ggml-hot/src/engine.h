// What the device does with a graph: hot experts on the GPU, cold ones on the CPU, at the same time, one result.
// One engine serves all contexts of a process; it lives as long as one of them does.
#pragma once

#include "cold_path.h"
#include "expert_cache.h"
#include "handles.h"
#include "settings.h"
#include "stats.h"

#include <mutex>

namespace hot {

class engine {
public:
    // `device` holds the cache: the GPU, or the CPU device where there is none.
    engine(const settings & config, ggml_backend_dev_t device);
    ~engine();
    engine(const engine &) = delete;
    engine & operator=(const engine &) = delete;

    // Total: a graph that is not a whole expert block is computed node by node. Finished when it returns.
    ggml_status compute(ggml_cgraph * graph);

    void set_n_threads(int n);
    stats snapshot();

private:
    // The routing and the input of one block in host memory.
    struct host_input {
        const float *   x;
        const int32_t * ids;  // [n_used, n_tokens], packed
    };

    std::string find_block(ggml_cgraph * graph, moe_block & block);
    ggml_status compute_block(ggml_cgraph * graph, const moe_block & block);
    ggml_status fall_back(ggml_cgraph * graph, const std::string & reason);
    host_input  fetch_input(const moe_block & block);
    void        send_rows(const moe_block & block, const std::vector<int> & positions, const float * rows);
    void        reserve_staging(size_t bytes);

    const settings     config_;
    ggml_backend_dev_t device_;
    backend_ptr        gpu_;
    backend_ptr        copier_;
    cold_path          cold_;
    ggml_backend_buffer_type_t gpu_buft_;
    buffer_ptr         staging_;       // pinned where the GPU offers it
    std::vector<uint8_t> plain_staging_;
    uint8_t *          staging_data_ = nullptr;
    size_t             staging_size_ = 0;
    std::vector<int32_t> slot_ids_;

    std::mutex   mutex_;               // compute, settings and statistics exclude each other
    stats        stats_;
    expert_cache cache_;               // last, so that it goes before the streams it uses
};

}  // namespace hot
