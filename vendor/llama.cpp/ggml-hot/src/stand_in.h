// A tensor of llama.cpp's, addressed as if it lay in a buffer of the GPU's own type.
//
// The scheduler's tensors of our device lie in memory of the GPU's kind, but their buffers carry our buffer type's
// address (ggml-hot.cpp says why), and the GPU's asynchronous copies insist on their own. So a stand-in has the same
// data in a copy of the same buffer's description, with the GPU's type in it.
#pragma once

#include "ggml-backend-impl.h"
#include "moe_block.h"

namespace hot {

inline void bind_stand_in(ggml_tensor * stand_in, ggml_backend_buffer & description, const ggml_tensor * t, ggml_backend_buffer_type_t own) {
    description       = *buffer_of(t);
    description.buft  = own;
    stand_in->buffer  = &description;
    stand_in->data    = t->data;
}

// A stand-in for the length of one call.
struct stand_in {
    ggml_tensor         tensor;
    ggml_backend_buffer description;

    stand_in(const ggml_tensor * t, ggml_backend_buffer_type_t own) : tensor(*t) {
        tensor.view_src = nullptr;
        bind_stand_in(&tensor, description, t, own);
    }
    stand_in(const stand_in &) = delete;
    stand_in & operator=(const stand_in &) = delete;
};

}  // namespace hot
