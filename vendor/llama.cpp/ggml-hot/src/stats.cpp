#include "stats.h"

#include "ggml-impl.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <fstream>

namespace hot {

using json = nlohmann::ordered_json;

static constexpr double mib = 1024.0 * 1024.0;

void phase_times::add(const phase_times & other) {
    submit += other.submit;
    cold += other.cold;
    wait += other.wait;
    swap += other.swap;
}

void stream_stats::reset() {
    blocks = uploaded_bytes = resident_bytes = 0;
}

void engine_stats::reset() {
    tokens = fallback_nodes = 0;
    fallback_reasons.clear();
    multi = {};
    stream.reset();
    for (layer_stats & layer : layers) {
        layer_stats fresh;
        fresh.name  = layer.name;
        fresh.slots = layer.slots;
        layer       = fresh;
    }
}

// means a block
static json times(const phase_times & t, uint64_t blocks) {
    const double n = (double) std::max<uint64_t>(1, blocks);
    return {{"submit", t.submit / n}, {"cold", t.cold / n}, {"wait", t.wait / n}, {"swap", t.swap / n}};
}

static json bytes_of(const vgpu_stats & v) {
    return {{"total_bytes", v.total}, {"used_bytes", v.used}, {"peak_bytes", v.peak}};
}

static json cache_fields(const report & r) {
    layer_stats sum;
    multi_stats multi;
    stream_stats stream;
    working_memory working;
    working.host_bytes = r.cold_bytes;
    uint64_t tokens = 0, cache_bytes = 0, fallback_nodes = 0;
    std::vector<std::string> names, reasons;
    json layers = json::array(), devices = json::array();
    for (const engine_stats & e : r.engines) {
        int slots = 0;
        for (const layer_stats & l : e.layers) {
            slots += l.slots;
            sum.hits += l.hits;
            sum.misses += l.misses;
            sum.evictions += l.evictions;
            sum.uploads += l.uploads;
            sum.uploaded_bytes += l.uploaded_bytes;
            sum.fetched_bytes += l.fetched_bytes;
            sum.blocks += l.blocks;
            sum.time_us.add(l.time_us);
            layers.push_back({{"name", l.name}, {"slots", l.slots}, {"hits", l.hits}, {"misses", l.misses}, {"evictions", l.evictions},
                              {"uploads", l.uploads}, {"uploaded_bytes", l.uploaded_bytes}, {"fetched_bytes", l.fetched_bytes}, {"time_us", times(l.time_us, l.blocks)}});
        }
        sum.slots += slots;
        tokens = std::max(tokens, e.tokens);
        cache_bytes += e.cache_bytes;
        fallback_nodes += e.fallback_nodes;
        reasons.insert(reasons.end(), e.fallback_reasons.begin(), e.fallback_reasons.end());
        multi.blocks += e.multi.blocks;
        multi.tokens += e.multi.tokens;
        multi.hits += e.multi.hits;
        multi.misses += e.multi.misses;
        stream.blocks += e.stream.blocks;
        stream.uploaded_bytes += e.stream.uploaded_bytes;
        stream.resident_bytes += e.stream.resident_bytes;
        stream.buffer_bytes += e.stream.buffer_bytes;
        working.vram_bytes += e.working.vram_bytes;
        working.host_bytes += e.working.host_bytes;
        names.push_back(e.device);
        devices.push_back({{"name", e.device}, {"layers", e.layers.size()}, {"slots", slots}, {"cache_bytes", e.cache_bytes}, {"in_order", e.in_order}});
    }
    std::string all_names;
    for (const std::string & name : names) {
        all_names += (all_names.empty() ? "" : ",") + name;
    }
    const size_t n_layers = layers.size();
    return {
        {"cache_device", all_names}, {"k", r.set.k}, {"budget_mib", (double) r.set.budget / mib}, {"shared_budget", r.set.shared},
        {"policy", policy_name(r.set.policy)}, {"interval", r.set.interval}, {"hysteresis", r.set.hysteresis}, {"bypass", r.set.bypass},
        {"fetch", r.set.fetch}, {"upload_mib", (double) r.set.upload_bytes / mib},
        // of a layer, on average
        {"slots", n_layers ? (uint64_t) (((size_t) sum.slots + n_layers / 2) / n_layers) : 0},
        {"layers", n_layers}, {"tokens", tokens}, {"blocks", sum.blocks}, {"hits", sum.hits}, {"misses", sum.misses},
        {"evictions", sum.evictions}, {"uploads", sum.uploads}, {"uploaded_bytes", sum.uploaded_bytes}, {"fetched_bytes", sum.fetched_bytes}, {"cache_bytes", cache_bytes},
        {"multi", {{"blocks", multi.blocks}, {"tokens", multi.tokens}, {"hits", multi.hits}, {"misses", multi.misses}}},
        {"stream", {{"blocks", stream.blocks}, {"uploaded_bytes", stream.uploaded_bytes}, {"resident_bytes", stream.resident_bytes},
                    {"buffer_bytes", stream.buffer_bytes}}},
        {"working", {{"vram_bytes", working.vram_bytes}, {"host_bytes", working.host_bytes}}},
        {"fallback_nodes", fallback_nodes}, {"fallback_reasons", reasons},
        {"time_us", times(sum.time_us, sum.blocks)},
        {"trace", {{"on", r.trace.on}, {"tokens", r.trace.tokens}, {"bytes", r.trace.bytes}}},
        {"devices", devices}, {"layer", layers},
    };
}

std::string to_json(const report & r) {
    json out = {{"version", 1}, {"device", "HOT"}, {"enabled", r.enabled}};
    if (r.enabled) {
        out.update(cache_fields(r));
    }
    if (!r.vgpus.empty()) {
        vgpu_stats sum;
        json each = json::array();
        for (const vgpu_stats & v : r.vgpus) {
            sum = {sum.total + v.total, sum.used + v.used, sum.peak + v.peak};
            each.push_back(bytes_of(v));
        }
        out["vgpu"]  = bytes_of(sum);
        out["vgpus"] = each;
    }
    return out.dump(-1, ' ', false, json::error_handler_t::replace);
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
