// Counters of the device: proof that it was engaged, and where the time of a layer went.
#pragma once

#include "settings.h"

#include <cstdint>
#include <string>
#include <vector>

namespace hot {

// Sums of microseconds over expert blocks.
struct phase_times {
    double submit = 0;  // routing and activations fetched, hot experts started
    double cold   = 0;  // missed experts computed on the CPU
    double wait   = 0;  // results joined, GPU finished
    double swap   = 0;  // policy, uploads started

    void add(const phase_times & other);
};

struct layer_stats {
    std::string name;                 // of the layer's first expert weight
    int         slots     = 0;
    uint64_t    hits      = 0;        // (token, expert) pairs computed from a slot, ...
    uint64_t    misses    = 0;        // ... and from host memory
    uint64_t    evictions = 0;        // experts that had to leave their slot
    uint64_t    uploads = 0, uploaded_bytes = 0;
    uint64_t    fetched_bytes = 0;    // of these, missed experts that the GPU computed at once
    uint64_t    blocks    = 0;        // expert blocks computed
    phase_times time_us;
};

// Blocks of more than one token.
struct multi_stats {
    uint64_t blocks = 0, tokens = 0, hits = 0, misses = 0;
};

// Large batches, whose experts pass through VRAM.
struct stream_stats {
    uint64_t blocks = 0;
    uint64_t uploaded_bytes = 0, resident_bytes = 0;  // brought from host memory, and from slots
    uint64_t buffer_bytes = 0;                        // VRAM it holds

    void reset();
};

// Memory beside the slots and the stream's buffer: intermediate results, rows on their way, copies of pageable weights.
struct working_memory {
    uint64_t vram_bytes = 0, host_bytes = 0;
};

// What one GPU's part of the cache counted.
struct engine_stats {
    std::string device;
    bool        in_order = false;     // blocks go to the stream of the context that asks
    uint64_t    cache_bytes = 0;
    uint64_t    tokens = 0;           // seen by the first layer
    uint64_t    fallback_nodes = 0;   // graph nodes computed one by one on the CPU
    std::vector<std::string> fallback_reasons;
    std::vector<layer_stats> layers;
    multi_stats multi;
    stream_stats stream;
    working_memory working;

    void reset();  // counters to zero; layers, slots and bytes stay
};

struct trace_stats {
    bool     on = false;
    uint64_t tokens = 0, bytes = 0;
};

// Everything the device reports.
struct report {
    bool        enabled = false;      // false when only virtual GPUs are on
    knobs       set;
    trace_stats trace;
    std::vector<engine_stats> engines;
    uint64_t    cold_bytes = 0;       // host memory of the CPU's path, which the engines share
    std::vector<vgpu_stats>   vgpus;
};

std::string to_json(const report & r);  // one line

// Replaces the file in one step, so that a reader never sees half of it. Failure is logged, not fatal.
void write_file(const std::string & path, const std::string & text);

}  // namespace hot
