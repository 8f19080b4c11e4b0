// llama.cpp's tests/test-llama-archs.cpp knows the keys that each architecture wants; here it is taken in as it stands.
#define main llama_archs_main
#include "tests/test-llama-archs.cpp"
#undef main

#include "llama-archs.h"

std::vector<std::string> moe_architectures() {
    std::vector<std::string> names;
    for (const llm_arch arch : llm_arch_all()) {
        if (arch != LLM_ARCH_UNKNOWN && moe_implemented(arch)) {
            names.push_back(llm_arch_name(arch));
        }
    }
    return names;
}

gguf_context * moe_metadata(const std::string & arch) {
    gguf_context_ptr keys = get_gguf_ctx(llm_arch_from_string(arch), true);
    gguf_context * copy = gguf_init_empty();
    gguf_set_kv(copy, keys.get());  // without the few tensors that only say what may be left away
    return copy;
}
