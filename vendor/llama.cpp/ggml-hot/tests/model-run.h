// Runs a model file through libllama the way llama-server does, and keeps what it said.
#pragma once

#include "llama-cpp.h"

#include <string>
#include <vector>

struct placement {
    bool gpu         = false;  // all layers on the GPUs there are; else none. Of two, the first gets the first layer
    bool cpu_experts = false;  // but the experts in host memory, as with --cpu-moe
    int  n_threads   = 1;
};

// Throws std::runtime_error. The model's experts lie in plain host memory, not in a repacked form.
llama_model_ptr   load_model(const std::string & path, const placement & where);
llama_context_ptr make_context(llama_model * model, const placement & where);

// The logits of every position of `tokens`, fed in batches of n_batch, each into an empty context: [tokens, n_vocab].
std::vector<float> forced_logits(llama_context * ctx, const std::vector<llama_token> & tokens, int n_batch);

// n greedy tokens behind the prompt, none of them among the 16 before it.
std::vector<llama_token> greedy_text(llama_context * ctx, const std::vector<llama_token> & prompt, int n);

std::vector<llama_token> random_tokens(const llama_model * model, int n, unsigned seed);
