// Counters of the device: proof that it was engaged, and where the time of a layer went.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hot {

struct layer_stats {
    uint64_t hits   = 0;
    uint64_t misses = 0;
};

// Sums of microseconds over all (layer, token batch) blocks.
struct phase_times {
    double submit = 0;  // routing and activations fetched, hot experts started
    double cold   = 0;  // missed experts computed on the CPU
    double wait   = 0;  // results joined, GPU finished
    double swap   = 0;  // policy, uploads started
};

struct vgpu_stats {
    uint64_t total = 0, used = 0, peak = 0;  // bytes
};

struct stats {
    std::string cache_device;
    int         k = 0, slots = 0, interval = 0, bypass = 0;  // slots: what the cache really took, <= k
    uint64_t    tokens = 0;                                  // seen by the first layer
    uint64_t    blocks = 0;                                  // expert blocks computed through the cache
    uint64_t    uploads = 0, uploaded_bytes = 0, cache_bytes = 0;
    uint64_t    fallback_nodes = 0;                          // graph nodes computed one by one on the CPU
    std::vector<std::string> fallback_reasons;
    std::vector<layer_stats> layers;
    phase_times              time_us;
};

// One line of JSON; `cache` is null when only the virtual GPU is on, `vgpu` null when it is off.
std::string to_json(const stats * cache, const vgpu_stats * vgpu);

// Replaces the file in one step, so that a reader never sees half of it. Failure is logged, not fatal.
void write_file(const std::string & path, const std::string & text);

}  // namespace hot
