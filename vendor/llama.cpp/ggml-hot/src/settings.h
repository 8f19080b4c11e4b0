// What the environment asks of the device. Read once, when the library is loaded; the knobs can change later.
#pragma once

#include "policy.h"
#include "vgpu.h"

#include <cstddef>
#include <string>

namespace hot {

// What can be changed while the device runs (control.h).
struct knobs {
    int         k            = 0;      // GGML_HOT_K: experts of a layer kept in VRAM
    size_t      budget       = 0;      // GGML_HOT_MIB, in bytes: VRAM of the slots on each GPU; takes the place of k; 0 = k says
    bool        shared       = false;  // GGML_HOT_SHARED: one budget over all layers of a GPU, not the same for each
    policy_kind policy       = policy_kind::lfru;  // GGML_HOT_POLICY: window, lru, lfru or static
    int         interval     = 60;     // GGML_HOT_INTERVAL: tokens between rebalances of a layer; lfru: four half-lives of a use
    int         hysteresis   = 1;      // GGML_HOT_HYSTERESIS: uses by which a newcomer must lead to displace an expert
    int         bypass       = 1;      // GGML_HOT_BYPASS: largest batch, in tokens, that goes through the cache
    int         fetch        = -1;     // GGML_HOT_FETCH: most missed experts of a block that the GPU computes; -1 = as measured
    size_t      upload_bytes = 0;      // GGML_HOT_UPLOAD_MIB, in bytes: most that is uploaded for one batch of tokens
};

constexpr int largest_k      = 4096;
constexpr int largest_bypass = 64;
constexpr int most_tokens    = 1000000;  // of an interval or a hysteresis

struct settings : knobs {
    int          stream_from = 0; // GGML_HOT_STREAM: batches of so many tokens and more pass their experts through VRAM; 0 = none do
    size_t       stream_bytes = 0;  // GGML_HOT_STREAM_MIB, in bytes: VRAM that they pass through; 0 = what a layer needs
    bool         in_order = true;   // GGML_HOT_IN_ORDER: blocks go to llama.cpp's own stream where that can be (gpu_work.h)
    size_t       headroom = 0;   // GGML_HOT_HEADROOM_MIB, in bytes: VRAM of each GPU left free
    vgpu_options vgpu;           // GGML_HOT_VGPU_*
    std::string  stats_path;     // GGML_HOT_STATS: file the counters are written to
    std::string  socket_path;    // GGML_HOT_SOCKET: Unix socket for requests
    std::string  profile_path;   // GGML_HOT_PROFILE: uses of each expert, read at start and written at the end
    std::string  trace_path;     // GGML_HOT_TRACE: file for the routing, from the start on

    // Whether there is a cache at all: without, the device is not registered.
    bool enabled() const { return k > 0 || budget > 0; }

    // Values that are no number, or out of range, keep their default and are named in the log.
    static settings from_environment();
};

}  // namespace hot
