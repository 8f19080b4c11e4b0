// The virtual GPU: a device of type GPU that computes on the CPU, but owns memory of its own that the host cannot
// address and that can run out. With it placements, ceilings, uploads and out-of-memory are real on any machine.
#pragma once

#include "ggml-backend-impl.h"
#include "stats.h"

namespace hot {

// `capacity` in bytes; the device lives as long as the library.
ggml_backend_dev_t make_vgpu_device(ggml_backend_reg_t reg, size_t capacity);

bool is_vgpu_backend(ggml_backend_t backend);
void set_vgpu_threads(ggml_backend_t backend, int n);
vgpu_stats vgpu_snapshot();

}  // namespace hot
