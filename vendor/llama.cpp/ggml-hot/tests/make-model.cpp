// Writes the base models of the matrix: one small model of an architecture, with enough experts to choose from.
// Usage: make-model <folder of ggml's libraries> <architecture> <file>       or: make-model --list
// Exit code 77: the architecture has no experts after all.
//
// llama.cpp creates the tensors itself, from the keys alone, so each has the shape that its loader asks for. All
// expert matrices are F32 and, where the loader knows merged gate/up tensors, merged; model-file.h makes variants of them.
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "llama-archs.h"
#include "llama-cpp.h"
#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

static constexpr uint32_t n_expert = 16, n_used = 4, seed = 1;
static constexpr uint32_t block = 256;  // the largest block of a quantised type: a row that is a multiple of it fits them all

// Architectures with experts that llama.cpp's test builds without, and those it builds that answer without logits.
static const std::vector<std::string> more_architectures = {"gemma4", "granitehybrid", "jamba", "nemotron_h_moe"};
static const std::vector<std::string> no_text_models = {"llama-embed"};

static std::vector<std::string> architectures() {
    std::vector<std::string> names = moe_architectures();
    names.insert(names.end(), more_architectures.begin(), more_architectures.end());
    std::sort(names.begin(), names.end());
    for (const std::string & none : no_text_models) {
        names.erase(std::remove(names.begin(), names.end(), none), names.end());
    }
    return names;
}

// keys

static bool has_key(const gguf_context * keys, const std::string & key) {
    return gguf_find_key(keys, key.c_str()) >= 0;
}

// Rounds a length, or every length of an array, to whole blocks, but not to none; 0 stays.
static void round(gguf_context * keys, const std::string & key) {
    const int64_t id = gguf_find_key(keys, key.c_str());
    const auto rounded = [](uint32_t n) { return n == 0 ? 0 : std::max(n / block, 1u) * block; };
    if (id < 0) {
        return;
    }
    if (gguf_get_kv_type(keys, id) == GGUF_TYPE_ARRAY) {
        const auto * data = (const uint32_t *) gguf_get_arr_data(keys, id);
        std::vector<uint32_t> lengths(data, data + gguf_get_arr_n(keys, id));
        std::transform(lengths.begin(), lengths.end(), lengths.begin(), rounded);
        gguf_set_arr_data(keys, key.c_str(), GGUF_TYPE_UINT32, lengths.data(), lengths.size());
    } else {
        gguf_set_val_u32(keys, key.c_str(), rounded(gguf_get_val_u32(keys, id)));
    }
}

static void adjust(gguf_context * keys, const std::string & arch) {
    const auto set = [&](const char * key, uint32_t value) { gguf_set_val_u32(keys, (arch + "." + key).c_str(), value); };
    set("expert_count", n_expert);
    set("expert_used_count", n_used);
    for (const char * length : {"embedding_length", "features_length", "feed_forward_length", "expert_latent_length"}) {
        round(keys, arch + "." + length);
    }
    if (has_key(keys, arch + ".expert_feed_forward_length")) {
        set("expert_feed_forward_length", block);
    }
    if (arch == "llama4") {
        set("expert_used_count", 1);  // as its real models: the weight comes before the experts
    } else if (arch == "grovemoe") {
        set("experts_per_group", 2);  // then two chosen experts may share one expert of the second, smaller set
        set("expert_chunk_feed_forward_length", block);
    } else if (arch == "gemma4") {
        const std::vector<uint8_t> pattern = {1, 1, 1, 1, 0};  // every fifth layer sees all
        set("attention.key_length_swa", block / 2);
        set("attention.value_length_swa", block / 2);
        gguf_set_arr_data(keys, "gemma4.attention.sliding_window_pattern", GGUF_TYPE_BOOL, pattern.data(), pattern.size());
    }
}

// tensors

struct tensors {
    ggml_context_ptr ctx{ggml_init({256u << 20, nullptr, false})};
    gguf_context *   file        = nullptr;
    bool             has_experts = false;
};

static bool contains(const char * name, const char * part) {
    return strstr(name, part) != nullptr;
}

// Random values of a size that keeps activations near one, so that each part of the model matters for the logits.
static void fill(float * values, const ggml_tensor * t) {
    std::mt19937 rng((uint32_t) std::hash<std::string>()(t->name) ^ seed);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    const bool is_norm = contains(t->name, "norm");
    const float scale = ggml_n_dims(t) > 1 ? 1.5f / std::sqrt((float) t->ne[0]) : 0.1f;
    for (int64_t i = 0; i < ggml_nelements(t); i++) {
        const float value = normal(rng);
        values[i] = is_norm ? 1.0f + 0.1f * value : contains(t->name, "ssm_a") ? -std::fabs(value) : scale * value;
    }
}

// Called by llama.cpp for every tensor of the new model.
static void take(ggml_tensor * t, void * userdata) {
    auto & out = *(tensors *) userdata;
    const bool scale = contains(t->name, ".scale") || contains(t->name, "input_scale");
    if (gguf_find_tensor(out.file, t->name) >= 0 || (scale && !contains(t->name, "gate_inp"))) {
        return;  // rope factors are shared by layers; scales are optional, model-file.h adds those of the experts
    }
    GGML_ASSERT(t->type == GGML_TYPE_F32);
    out.has_experts = out.has_experts || contains(t->name, "_exps.weight");
    ggml_tensor * copy = ggml_dup_tensor(out.ctx.get(), t);
    ggml_set_name(copy, t->name);
    fill((float *) copy->data, copy);
    gguf_add_tensor(out.file, copy);
}

int main(int argc, char ** argv) {
    if (argc == 2 && std::string(argv[1]) == "--list") {
        for (const std::string & name : architectures()) {
            printf("%s\n", name.c_str());
        }
        return 0;
    }
    if (argc != 4) {
        fprintf(stderr, "usage: %s <folder of ggml's libraries> <architecture> <file> | --list\n", argv[0]);
        return 2;
    }
    const std::string arch = argv[2], path = argv[3];
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            fputs(text, stderr);
        }
    }, nullptr);
    ggml_backend_load_all_from_path(argv[1]);

    gguf_context_ptr keys(moe_metadata(arch));
    adjust(keys.get(), arch);
    gguf_context_ptr file(gguf_init_empty());
    gguf_set_kv(file.get(), keys.get());
    tensors out;
    out.file = file.get();
    llama_model_params params = llama_model_default_params();
    ggml_backend_dev_t no_gpu[] = {nullptr};
    params.devices = no_gpu;
    const llama_model_ptr model(llama_model_init_from_user(keys.get(), take, &out, params));
    if (!model) {
        fprintf(stderr, "%s: llama.cpp does not build a model from these keys\n", arch.c_str());
        return 1;
    }
    if (!out.has_experts) {
        printf("%s: no tensor of experts\n", arch.c_str());
        return 77;
    }
    if (!gguf_write_to_file(file.get(), (path + ".part").c_str(), false) || rename((path + ".part").c_str(), path.c_str()) != 0) {
        fprintf(stderr, "cannot write %s\n", path.c_str());
        return 1;
    }
    return 0;
}
