#include "settings.h"

#include "ggml-impl.h"

#include <cerrno>
#include <cstdlib>

namespace hot {

static long read_number(const char * name, long fallback, long lowest, long highest) {
    const char * text = std::getenv(name);
    if (!text || !*text) {
        return fallback;
    }
    char * end = nullptr;
    errno = 0;
    const long value = std::strtol(text, &end, 10);
    if (errno != 0 || *end != '\0' || value < lowest || value > highest) {
        GGML_LOG_WARN("ggml_hot: %s='%s' is not a number from %ld to %ld: using %ld\n", name, text, lowest, highest, fallback);
        return fallback;
    }
    return value;
}

static std::string read_text(const char * name) {
    const char * text = std::getenv(name);
    return text ? text : "";
}

settings settings::from_environment() {
    constexpr size_t mib = 1024 * 1024;
    settings s;
    s.k           = (int) read_number("GGML_HOT_K", s.k, 0, 4096);
    s.interval    = (int) read_number("GGML_HOT_INTERVAL", s.interval, 1, 1000000);
    s.hysteresis  = (int) read_number("GGML_HOT_HYSTERESIS", s.hysteresis, 0, 1000000);
    s.bypass      = (int) read_number("GGML_HOT_BYPASS", s.bypass, 1, 64);
    s.vgpu        = (size_t) read_number("GGML_HOT_VGPU_MIB", 0, 0, 1 << 20) * mib;
    // a real GPU's back-end takes more memory at the first large batch; the virtual one never does
    s.headroom    = (size_t) read_number("GGML_HOT_HEADROOM_MIB", s.vgpu ? 0 : 256, 0, 1 << 20) * mib;
    s.stats_path  = read_text("GGML_HOT_STATS");
    s.socket_path = read_text("GGML_HOT_SOCKET");
    return s;
}

}  // namespace hot
