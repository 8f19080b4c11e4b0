#include "stats.h"

#include "ggml-impl.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <fstream>

namespace hot {

using json = nlohmann::ordered_json;

static json cache_fields(const stats & s) {
    uint64_t hits = 0, misses = 0;
    json layers = json::array();
    for (const layer_stats & layer : s.layers) {
        hits += layer.hits;
        misses += layer.misses;
        layers.push_back({{"hits", layer.hits}, {"misses", layer.misses}});
    }
    const double blocks = (double) std::max<uint64_t>(1, s.blocks);
    return {
        {"cache_device", s.cache_device}, {"k", s.k}, {"slots", s.slots}, {"interval", s.interval}, {"bypass", s.bypass},
        {"layers", s.layers.size()}, {"tokens", s.tokens}, {"blocks", s.blocks}, {"hits", hits}, {"misses", misses},
        {"uploads", s.uploads}, {"uploaded_bytes", s.uploaded_bytes}, {"cache_bytes", s.cache_bytes},
        {"fallback_nodes", s.fallback_nodes}, {"fallback_reasons", s.fallback_reasons},
        {"time_us", {{"submit", s.time_us.submit / blocks}, {"cold", s.time_us.cold / blocks},
                     {"wait", s.time_us.wait / blocks}, {"swap", s.time_us.swap / blocks}}},
        {"layer", layers},
    };
}

std::string to_json(const stats * cache, const vgpu_stats * vgpu) {
    json out = {{"version", 1}, {"device", "HOT"}, {"enabled", cache != nullptr}};
    if (cache) {
        out.update(cache_fields(*cache));
    }
    if (vgpu) {
        out["vgpu"] = {{"total_bytes", vgpu->total}, {"used_bytes", vgpu->used}, {"peak_bytes", vgpu->peak}};
    }
    return out.dump();
}

void write_file(const std::string & path, const std::string & text) {
    const std::string part = path + ".part";
    {
        std::ofstream file(part, std::ios::trunc);
        file << text << '\n';
        if (!file.flush()) {
            GGML_LOG_WARN("ggml_hot: cannot write the statistics to %s\n", part.c_str());
            return;
        }
    }
    if (std::rename(part.c_str(), path.c_str()) != 0) {
        GGML_LOG_WARN("ggml_hot: cannot write the statistics to %s\n", path.c_str());
    }
}

}  // namespace hot
