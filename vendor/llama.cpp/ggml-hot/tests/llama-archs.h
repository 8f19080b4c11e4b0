// The metadata of a tiny model of every architecture that llama.cpp's own tests know.
#pragma once

#include "gguf.h"

#include <string>
#include <vector>

// Names of all architectures for which llama.cpp's test builds a mixture of experts.
std::vector<std::string> moe_architectures();

// A new context with all keys of the architecture's MoE variant (owned by the caller), and no tensors.
gguf_context * moe_metadata(const std::string & arch);
