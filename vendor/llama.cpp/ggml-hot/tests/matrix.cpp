#include "matrix.h"

#include "ggml.h"

#include <algorithm>

namespace {

const std::vector<ggml_type> all_types = {GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_Q8_0,
                                          GGML_TYPE_IQ4_XS, GGML_TYPE_MXFP4, GGML_TYPE_F16, GGML_TYPE_BF16};

// Architectures whose loader takes merged gate/up tensors, and those whose graph reads a scale for each expert.
const std::vector<std::string> merged_archs = {"cohere2moe", "deepseek2", "gemma4", "hy_v3", "qwen35moe", "qwen3next", "qwen4exp"};
const std::vector<std::string> scaled_archs = {"cohere2moe", "deepseek32", "gemma4", "hy_v3", "llama", "mellum", "mistral3",
                                               "nemotron_h_moe", "qwen35moe", "qwen3moe", "qwen3next", "qwen4exp"};

// Settings that fill the cache differently; the text must be the same with all of them.
const std::vector<environment> shuffles = {
    {{"GGML_HOT_K", "4"}, {"GGML_HOT_INTERVAL", "1"}},
    {{"GGML_HOT_K", "5"}, {"GGML_HOT_INTERVAL", "7"}},
    {{"GGML_HOT_K", "9"}, {"GGML_HOT_INTERVAL", "2"}},
    {{"GGML_HOT_K", "15"}, {"GGML_HOT_INTERVAL", "1"}},
    {{"GGML_HOT_K", "5"}, {"GGML_HOT_POLICY", "lru"}},
    {{"GGML_HOT_K", "12"}, {"GGML_HOT_POLICY", "lfru"}},
    {{"GGML_HOT_K", "7"}, {"GGML_HOT_POLICY", "static"}},
    {{"GGML_HOT_MIB", "2"}, {"GGML_HOT_SHARED", "1"}},
    {{"GGML_HOT_K", "8"}, {"GGML_HOT_BYPASS", "1"}},
    {{"GGML_HOT_K", "8"}, {"GGML_HOT_UPLOAD_MIB", "1"}, {"GGML_HOT_INTERVAL", "1"}},
};

const char * name_of(cache_on cache) {
    switch (cache) {
        case cache_on::cpu:        return "CPU";
        case cache_on::vgpu:       return "virtual GPU";
        case cache_on::two_vgpus:  return "2 virtual GPUs";
        case cache_on::async_vgpu: return "async virtual GPU";
        case cache_on::gpu:        return "GPU";
    }
    return "";
}

struct builder {
    std::vector<row> rows;

    row & add(const std::string & arch, ggml_type type, cache_on cache, const environment & settings = {}) {
        row r;
        r.arch       = arch;
        r.model.type = type;
        r.cache      = cache;
        r.settings   = settings;
        rows.push_back(r);
        return rows.back();
    }
};

// Layouts of the experts, and shapes that llama.cpp's own list does not have.
void add_layouts(builder & b, cache_on cache, bool full) {
    for (const std::string & arch : merged_archs) {
        if (full || arch == "qwen35moe") {
            b.add(arch, GGML_TYPE_Q4_K, cache).model.form = expert_form::merged;
        }
    }
    for (const std::string & arch : scaled_archs) {
        if (full || arch == "qwen3moe" || arch == "nemotron_h_moe") {
            b.add(arch, GGML_TYPE_Q4_K, cache).model.form = expert_form::scaled;
        }
    }
    b.add("gemma4", GGML_TYPE_Q4_K, cache).model.form = expert_form::merged_scaled;  // as its real models
    b.add("qwen3moe", GGML_TYPE_Q4_K, cache).model.used = 1;
    b.add("qwen3moe", GGML_TYPE_MXFP4, cache, {{"GGML_HOT_K", "10"}}).model.used = 8;
    b.add("llama4", GGML_TYPE_Q4_K, cache).model.used = 2;
    b.add("deepseek2", GGML_TYPE_Q4_K, cache).model.groups = 4;
}

}  // namespace

std::string row::name() const {
    std::string text = arch + " | " + describe(model) + " | " + ggml_type_name(model.type) + " | " + name_of(cache);
    for (const auto & [key, value] : settings) {
        const std::string ours = "GGML_HOT_";
        text += " " + (key.rfind(ours, 0) == 0 ? key.substr(ours.size()) : key) + "=" + value;
    }
    return text + (n_threads > 1 ? " " + std::to_string(n_threads) + " threads" : "");
}

std::vector<row> matrix(const std::vector<std::string> & archs, bool full, bool gpu) {
    builder b;
    for (const std::string & arch : archs) {
        for (const ggml_type type : all_types) {
            if (full || type == GGML_TYPE_Q4_K || arch == "qwen3moe") {
                b.add(arch, type, gpu ? cache_on::gpu : cache_on::cpu);
            }
        }
    }
    if (gpu) {
        add_layouts(b, cache_on::gpu, full);
        return b.rows;
    }
    add_layouts(b, cache_on::cpu, full);
    add_layouts(b, cache_on::vgpu, full);
    for (const std::string & arch : archs) {
        if (full || arch == "qwen3moe" || arch == "gpt-oss" || arch == "grovemoe") {
            b.add(arch, GGML_TYPE_Q4_K, cache_on::vgpu);
            b.add(arch, GGML_TYPE_Q8_0, cache_on::two_vgpus);
            b.add(arch, GGML_TYPE_Q4_K, cache_on::async_vgpu, {{"GGML_HOT_INTERVAL", "1"}});
        }
    }
    // rebalanced at every token while uploads are late
    b.add("qwen3moe", GGML_TYPE_Q8_0, cache_on::async_vgpu, {{"GGML_HOT_INTERVAL", "1"}, {"GGML_HOT_K", "5"}, {"GGML_HOT_VGPU_DELAY_US", "500"}});
    b.add("qwen3moe", GGML_TYPE_F16, cache_on::async_vgpu, {{"GGML_HOT_POLICY", "lru"}}).n_threads = 2;
    for (const cache_on cache : {cache_on::cpu, cache_on::vgpu}) {
        for (const environment & settings : shuffles) {
            b.add("qwen3moe", GGML_TYPE_Q4_K, cache, settings);
        }
    }
    b.add("qwen3moe", GGML_TYPE_Q4_K, cache_on::cpu, {{"GGML_CPU_TILED_MM", "1"}});
    return b.rows;
}
