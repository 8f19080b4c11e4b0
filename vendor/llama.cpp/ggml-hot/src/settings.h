// What the environment asks of the device. Read once, when the library is loaded.
#pragma once

#include <cstddef>
#include <string>

namespace hot {

struct settings {
    int         k          = 0;    // GGML_HOT_K: experts of a layer kept in VRAM; 0 = device not registered
    int         interval   = 60;   // GGML_HOT_INTERVAL: tokens between rebalances of a layer
    int         hysteresis = 1;    // GGML_HOT_HYSTERESIS: uses by which a newcomer must lead to displace an expert
    int         bypass     = 1;    // GGML_HOT_BYPASS: largest batch, in tokens, that goes through the cache
    size_t      headroom   = 0;    // GGML_HOT_HEADROOM_MIB, in bytes: VRAM left free when slots are taken
    size_t      vgpu       = 0;    // GGML_HOT_VGPU_MIB, in bytes: memory of the virtual GPU; 0 = none
    std::string stats_path;        // GGML_HOT_STATS: file the counters are written to
    std::string socket_path;       // GGML_HOT_SOCKET: Unix socket for requests

    // Values that are no number, or out of range, keep their default and are named in the log.
    static settings from_environment();
};

}  // namespace hot
