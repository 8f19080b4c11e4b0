// The backend (stream) of a virtual GPU: graphs go to a CPU backend, at once or through a queue.
#pragma once

#include "ggml-backend-impl.h"
#include "handles.h"

namespace hot {

// Synchronous, every call is finished when it returns. Asynchronous, the backend has a queue of its own, which
// synchronize and events wait for.
ggml_backend_t make_vgpu_backend(ggml_backend_dev_t dev, backend_ptr cpu, bool async, int max_delay_us);

ggml_backend_event_t new_vgpu_event(ggml_backend_dev_t dev);
void free_vgpu_event(ggml_backend_dev_t dev, ggml_backend_event_t event);
void synchronize_vgpu_event(ggml_backend_dev_t dev, ggml_backend_event_t event);

}  // namespace hot
