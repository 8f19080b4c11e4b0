// Computes the experts that are not in VRAM, on the CPU, straight from the original weights.
#pragma once

#include "handles.h"
#include "moe_block.h"

#include <cstdint>
#include <vector>

namespace hot {

class cold_path {
public:
    cold_path();
    ~cold_path();
    cold_path(const cold_path &) = delete;
    cold_path & operator=(const cold_path &) = delete;

    void set_n_threads(int n);
    ggml_backend_t cpu() const { return cpu_.get(); }

    // rows[i] = the chain of `block` for position positions[i] (= token * n_used + place among the used) with expert
    // experts[i]. `x` is the block's input in host memory; `rows` has positions.size() rows of out->ne[0] floats.
    ggml_status compute(const moe_block & block, const float * x, const std::vector<int> & positions,
                 const std::vector<int32_t> & experts, float * rows);

private:
    void * next_bytes(size_t n);

    backend_ptr          cpu_;
    int                  n_threads_ = 0;
    void *               pool_ = nullptr;   // ggml_threadpool_t of our own: without one, each call would build and drop one
    std::vector<uint8_t> descriptions_;     // tensors and graph of one call
    std::vector<uint8_t> data_;             // intermediate results of one call
    size_t               used_ = 0;
};

}  // namespace hot
