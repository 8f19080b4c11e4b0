#include "model-run.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <stdexcept>
#include <thread>

// as --cpu-moe: common/common.h
static const char * const experts_pattern = "\\.ffn_(up|down|gate|gate_up)_(ch|)exps";

llama_model_ptr load_model(const std::string & path, const placement & where) {
    llama_model_params params = llama_model_default_params();
    std::vector<float> split(llama_max_devices(), 0.0f);
    split[0] = 1.0f;
    split[std::min<size_t>(1, split.size() - 1)] = 3.0f;
    ggml_backend_dev_t no_device[] = {nullptr};
    const llama_model_tensor_buft_override overrides[] = {{experts_pattern, ggml_backend_cpu_buffer_type()}, {nullptr, nullptr}};
    params.devices         = where.gpu ? nullptr : no_device;
    params.n_gpu_layers    = where.gpu ? 99 : 0;
    params.load_mode       = LLAMA_LOAD_MODE_NONE;
    params.use_extra_bufts = false;
    params.tensor_split    = split.data();
    if (where.gpu && where.cpu_experts) {
        params.tensor_buft_overrides = overrides;
    }
    llama_model_ptr model(llama_model_load_from_file(path.c_str(), params));
    if (!model) {
        throw std::runtime_error("llama.cpp does not load the model");
    }
    return model;
}

llama_context_ptr make_context(llama_model * model, const placement & where) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = 256;
    params.n_batch         = 32;
    params.n_ubatch        = 32;
    params.n_threads       = where.n_threads;
    params.n_threads_batch = where.n_threads;
    llama_context_ptr ctx(llama_init_from_model(model, params));
    if (!ctx) {
        throw std::runtime_error("llama.cpp makes no context");
    }
    return ctx;
}

static int n_vocab(const llama_context * ctx) {
    return llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));
}

static void forget(llama_context * ctx) {
    if (llama_memory_t memory = llama_get_memory(ctx)) {  // diffusion models have none
        llama_memory_clear(memory, /* data */ true);
    }
}

// Appends the logits of every token of the batch.
static void decode(llama_context * ctx, const llama_token * tokens, int n, int first_position, std::vector<float> & logits) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i]     = tokens[i];
        batch.pos[i]       = first_position + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = 1;
    }
    const int status = llama_decode(ctx, batch);
    llama_batch_free(batch);
    if (status != 0) {
        throw std::runtime_error("llama_decode returned " + std::to_string(status));
    }
    for (int i = 0; i < n; i++) {
        const float * row = llama_get_logits_ith(ctx, i);
        logits.insert(logits.end(), row, row + n_vocab(ctx));
    }
}

std::vector<float> forced_logits(llama_context * ctx, const std::vector<llama_token> & tokens, int n_batch) {
    std::vector<float> logits;
    forget(ctx);
    for (int at = 0; at < (int) tokens.size(); at += n_batch) {
        decode(ctx, tokens.data() + at, std::min(n_batch, (int) tokens.size() - at), at, logits);
        if (at / n_batch == 2) {
            // No token waits for an upload, and on a busy machine these few would all be done before the first one.
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        }
    }
    return logits;
}

// A model of random numbers soon says the same few tokens over and over, with the same experts: these it may not.
static constexpr size_t no_repeat = 16;

std::vector<llama_token> greedy_text(llama_context * ctx, const std::vector<llama_token> & prompt, int n) {
    std::vector<llama_token> text;
    std::vector<float> logits;
    forget(ctx);
    decode(ctx, prompt.data(), (int) prompt.size(), 0, logits);
    while ((int) text.size() < n) {
        const auto last = logits.end() - n_vocab(ctx);
        for (size_t i = text.size() - std::min(text.size(), no_repeat); i < text.size(); i++) {
            last[text[i]] = -INFINITY;
        }
        text.push_back((llama_token) (std::max_element(last, logits.end()) - last));
        logits.clear();
        decode(ctx, &text.back(), 1, (int) (prompt.size() + text.size()) - 1, logits);
    }
    return text;
}

std::vector<llama_token> random_tokens(const llama_model * model, int n, unsigned seed) {
    std::mt19937 rng(seed);
    const unsigned vocabulary = (unsigned) llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<llama_token> tokens;
    for (int i = 0; i < n; i++) {
        tokens.push_back((llama_token) (rng() % vocabulary));
    }
    return tokens;
}
