#include "settings.h"

#include "ggml-impl.h"

#include <cerrno>
#include <cstdlib>
#include <sstream>
#include <unistd.h>

namespace hot {

static std::string read_text(const char * name) {
    const char * text = std::getenv(name);
    return text ? text : "";
}

// A path in which %p stands for the process's number, so that processes with one environment do not share a file.
static std::string read_path(const char * name) {
    std::string path = read_text(name);
    for (size_t at; (at = path.find("%p")) != std::string::npos;) {
        path.replace(at, 2, std::to_string(getpid()));
    }
    return path;
}

static bool parse_number(const std::string & text, long lowest, long highest, long & value) {
    char * end = nullptr;
    errno = 0;
    value = std::strtol(text.c_str(), &end, 10);
    return !text.empty() && errno == 0 && *end == '\0' && value >= lowest && value <= highest;
}

static long read_number(const char * name, long fallback, long lowest, long highest) {
    const std::string text = read_text(name);
    long value = fallback;
    if (!text.empty() && !parse_number(text, lowest, highest, value)) {
        GGML_LOG_WARN("ggml_hot: %s='%s' is not a number from %ld to %ld: using %ld\n", name, text.c_str(), lowest, highest, fallback);
        return fallback;
    }
    return value;
}

static constexpr size_t mib = 1024 * 1024;
static constexpr long   most_mib = 1 << 24;

static size_t read_mib(const char * name, long fallback, long lowest) {
    return (size_t) read_number(name, fallback, lowest, most_mib) * mib;
}

static policy_kind read_policy(const char * name, policy_kind fallback) {
    const std::string text = read_text(name);
    policy_kind kind = fallback;
    if (!text.empty() && !parse_policy(text, kind)) {
        GGML_LOG_WARN("ggml_hot: %s='%s' is not window, lru, lfru or static: using %s\n", name, text.c_str(), policy_name(fallback));
    }
    return kind;
}

// "64" for one virtual GPU, "64,128" for two.
static std::vector<size_t> read_mib_list(const char * name) {
    std::vector<size_t> sizes;
    std::stringstream list(read_text(name));
    for (std::string text; std::getline(list, text, ',');) {
        long value = 0;
        if (!parse_number(text, 0, most_mib, value)) {
            GGML_LOG_WARN("ggml_hot: %s: '%s' is not a number from 0 to %ld: no virtual GPU\n", name, text.c_str(), most_mib);
            return {};
        }
        if (value > 0) {
            sizes.push_back((size_t) value * mib);
        }
    }
    return sizes;
}

settings settings::from_environment() {
    settings s;
    s.k            = (int) read_number("GGML_HOT_K", s.k, 0, largest_k);
    s.budget       = read_mib("GGML_HOT_MIB", 0, 0);
    s.shared       = read_number("GGML_HOT_SHARED", 0, 0, 1) == 1;
    s.policy       = read_policy("GGML_HOT_POLICY", s.policy);
    s.interval     = (int) read_number("GGML_HOT_INTERVAL", s.interval, 1, most_tokens);
    s.hysteresis   = (int) read_number("GGML_HOT_HYSTERESIS", s.hysteresis, 0, most_tokens);
    s.bypass       = (int) read_number("GGML_HOT_BYPASS", s.bypass, 1, largest_bypass);
    s.upload_bytes = read_mib("GGML_HOT_UPLOAD_MIB", 128, 1);
    s.fetch        = (int) read_number("GGML_HOT_FETCH", s.fetch, -1, largest_k);
    s.stream_bytes = read_mib("GGML_HOT_STREAM_MIB", 0, 0);
    s.in_order     = read_number("GGML_HOT_IN_ORDER", 1, 0, 1) == 1;
    s.stream_from  = (int) read_number("GGML_HOT_STREAM", 0, 0, most_tokens);
    s.vgpu.capacity     = read_mib_list("GGML_HOT_VGPU_MIB");
    s.vgpu.async        = read_number("GGML_HOT_VGPU_ASYNC", 0, 0, 1) == 1;
    s.vgpu.max_delay_us = (int) read_number("GGML_HOT_VGPU_DELAY_US", 0, 0, 1000000);
    s.vgpu.fail_alloc   = (int) read_number("GGML_HOT_VGPU_FAIL_ALLOC", 0, 0, most_tokens);
    // a real GPU's back-end takes more memory at the first large batch; the virtual one never does
    s.headroom     = read_mib("GGML_HOT_HEADROOM_MIB", s.vgpu.capacity.empty() ? 256 : 0, 0);
    s.stats_path   = read_path("GGML_HOT_STATS");
    s.socket_path  = read_path("GGML_HOT_SOCKET");
    s.profile_path = read_path("GGML_HOT_PROFILE");
    s.trace_path   = read_path("GGML_HOT_TRACE");
    return s;
}

}  // namespace hot
