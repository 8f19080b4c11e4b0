// Virtual GPUs: devices of type GPU that compute on the CPU, but own memory of their own that the host cannot address
// and that can run out. With them placements, ceilings, uploads and out-of-memory are real on any machine.
//
// Optionally asynchronous: work is queued and done by a thread of the backend, in order, after random delays, with
// events; so that code which reads before it waits is found out. And allocations can be made to fail.
#pragma once

#include "ggml-backend-impl.h"

#include <cstdint>
#include <vector>

namespace hot {

struct vgpu_options {
    std::vector<size_t> capacity;        // GGML_HOT_VGPU_MIB="64" or "64,64": bytes of each virtual GPU
    bool async        = false;           // GGML_HOT_VGPU_ASYNC=1
    int  max_delay_us = 0;               // GGML_HOT_VGPU_DELAY_US: each queued step waits 0 to this long, at random
    int  fail_alloc   = 0;               // GGML_HOT_VGPU_FAIL_ALLOC=n: every n-th allocation fails; 0 = none
};

// Makes VGPU0, VGPU1, ...; they live as long as the library. Call once.
std::vector<ggml_backend_dev_t> make_vgpu_devices(ggml_backend_reg_t reg, const vgpu_options & options);

struct vgpu_stats {
    uint64_t total = 0, used = 0, peak = 0;  // bytes
};

bool is_vgpu_backend(ggml_backend_t backend);
void set_vgpu_threads(ggml_backend_t backend, int n);
std::vector<vgpu_stats> vgpu_snapshot();   // one for each virtual GPU
void vgpu_reset_peak();                    // peak = used

}  // namespace hot
