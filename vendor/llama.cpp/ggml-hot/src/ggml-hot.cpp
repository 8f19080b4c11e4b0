// The plug-in's face to ggml: backend, device and registry of the hot-expert device, in ggml's own order.
//
// The device is of type ACCEL, so that llama.cpp puts it between the GPUs and the CPU of every context, and it accepts
// just the expert products whose weights were left in host memory. docs/engine.md has the whole story.

#include "control.h"
#include "engine.h"
#include "ggml-backend-impl.h"
#include "settings.h"
#include "vgpu.h"

#include <cstring>
#include <memory>
#include <mutex>

namespace {

const hot::settings & config() {
    static const hot::settings settings = hot::settings::from_environment();
    return settings;
}

// shared state: one engine for all contexts of the process

struct shared_state {
    std::mutex                           mutex;
    int                                  contexts = 0;
    std::unique_ptr<hot::engine>         engine;
    std::unique_ptr<hot::control_socket> control;
};

shared_state & state() {
    static shared_state s;
    return s;
}

std::string stats_json(hot::engine * engine) {
    hot::stats      cache;
    hot::vgpu_stats vgpu = hot::vgpu_snapshot();
    if (engine) {
        cache = engine->snapshot();
    }
    return hot::to_json(engine ? &cache : nullptr, config().vgpu ? &vgpu : nullptr);
}

void save_stats(hot::engine * engine) {
    if (!config().stats_path.empty()) {
        hot::write_file(config().stats_path, stats_json(engine));
    }
}

ggml_backend_dev_t cache_device() {
    if (config().vgpu > 0) {
        return ggml_backend_dev_by_name("VGPU0");  // asked for by name, so it comes before a real one
    }
    for (const auto type : {GGML_BACKEND_DEVICE_TYPE_GPU, GGML_BACKEND_DEVICE_TYPE_IGPU}) {
        if (ggml_backend_dev_t gpu = ggml_backend_dev_by_type(type)) {
            return gpu;
        }
    }
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

// backend interface

const char * ggml_backend_hot_name(ggml_backend_t) {
    return "HOT";
}

void ggml_backend_hot_free(ggml_backend_t backend) {
    shared_state & s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (--s.contexts == 0) {
        s.control.reset();
        save_stats(s.engine.get());
        s.engine.reset();
    }
    delete backend;
}

ggml_status ggml_backend_hot_graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    return ((hot::engine *) backend->context)->compute(graph);
}

ggml_guid_t ggml_backend_hot_guid() {
    static ggml_guid guid = {0x68, 0x6f, 0x74, 0x2d, 0x65, 0x78, 0x70, 0x65, 0x72, 0x74, 0x73, 0x2d, 0x30, 0x30, 0x30, 0x31};
    return &guid;
}

const ggml_backend_i ggml_backend_hot_interface = {
    /* .get_name            = */ ggml_backend_hot_name,
    /* .free                = */ ggml_backend_hot_free,
    /* .set_tensor_async    = */ nullptr,
    /* .get_tensor_async    = */ nullptr,
    /* .set_tensor_2d_async = */ nullptr,
    /* .get_tensor_2d_async = */ nullptr,
    /* .cpy_tensor_async    = */ nullptr,
    /* .synchronize         = */ nullptr,  // a graph is finished when graph_compute returns
    /* .graph_plan_create   = */ nullptr,
    /* .graph_plan_free     = */ nullptr,
    /* .graph_plan_update   = */ nullptr,
    /* .graph_plan_compute  = */ nullptr,
    /* .graph_compute       = */ ggml_backend_hot_graph_compute,
    /* .event_record        = */ nullptr,
    /* .event_wait          = */ nullptr,
    /* .graph_optimize      = */ nullptr,
};

// device interface

const char * ggml_backend_hot_device_name(ggml_backend_dev_t) {
    return "HOT";
}

const char * ggml_backend_hot_device_description(ggml_backend_dev_t) {
    return "hot-expert cache";
}

void ggml_backend_hot_device_memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    *free = *total = 0;
}

enum ggml_backend_dev_type ggml_backend_hot_device_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

void ggml_backend_hot_device_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name        = ggml_backend_hot_device_name(dev);
    props->description = ggml_backend_hot_device_description(dev);
    props->type        = ggml_backend_hot_device_type(dev);
}

ggml_backend_t ggml_backend_hot_device_init(ggml_backend_dev_t dev, const char *) {
    shared_state & s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (s.contexts++ == 0) {
        s.engine = std::make_unique<hot::engine>(config(), cache_device());
        if (!config().socket_path.empty()) {
            hot::engine * engine = s.engine.get();
            s.control = std::make_unique<hot::control_socket>(config().socket_path, [engine] {
                save_stats(engine);
                return stats_json(engine);
            });
        }
    }
    return new ggml_backend{ggml_backend_hot_guid(), ggml_backend_hot_interface, dev, s.engine.get()};
}

// A copy of the GPU's buffer type: the same memory under another address. So activations stay in VRAM and nothing is
// copied between GPU and device; and yet the scheduler, which compares addresses, leaves the block's later steps to us.
ggml_backend_buffer_type_t ggml_backend_hot_device_buffer_type(ggml_backend_dev_t) {
    static ggml_backend_buffer_type copy = *ggml_backend_dev_buffer_type(cache_device());
    return &copy;
}

bool ggml_backend_hot_device_supports_op(ggml_backend_dev_t dev, const ggml_tensor * op) {
    return hot::is_expert_op(op, config().bypass, ggml_backend_hot_device_buffer_type(dev)) &&
           (op->op == GGML_OP_NONE || ggml_backend_dev_supports_op(cache_device(), op));
}

bool ggml_backend_hot_device_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    return ggml_backend_buft_is_host(buft) || buft == ggml_backend_hot_device_buffer_type(dev) ||
           buft == ggml_backend_dev_buffer_type(cache_device());
}

const ggml_backend_device_i ggml_backend_hot_device_interface = {
    /* .get_name             = */ ggml_backend_hot_device_name,
    /* .get_description      = */ ggml_backend_hot_device_description,
    /* .get_memory           = */ ggml_backend_hot_device_memory,
    /* .get_type             = */ ggml_backend_hot_device_type,
    /* .get_props            = */ ggml_backend_hot_device_props,
    /* .init_backend         = */ ggml_backend_hot_device_init,
    /* .get_buffer_type      = */ ggml_backend_hot_device_buffer_type,
    /* .get_host_buffer_type = */ nullptr,
    /* .buffer_from_host_ptr = */ nullptr,
    /* .supports_op          = */ ggml_backend_hot_device_supports_op,
    /* .supports_buft        = */ ggml_backend_hot_device_supports_buft,
    /* .offload_op           = */ nullptr,
    /* .event_new            = */ nullptr,
    /* .event_free           = */ nullptr,
    /* .event_synchronize    = */ nullptr,
};

// registry interface

const char * ggml_backend_hot_reg_name(ggml_backend_reg_t) {
    return "HOT";
}

// Off means absent: without GGML_HOT_K there is no hot device, without GGML_HOT_VGPU_MIB no virtual GPU.
size_t ggml_backend_hot_reg_device_count(ggml_backend_reg_t) {
    return (config().k > 0) + (config().vgpu > 0);
}

ggml_backend_dev_t ggml_backend_hot_reg_device(ggml_backend_reg_t reg, size_t index) {
    static ggml_backend_device hot_device = {ggml_backend_hot_device_interface, reg, nullptr};
    static ggml_backend_dev_t  vgpu       = config().vgpu ? hot::make_vgpu_device(reg, config().vgpu) : nullptr;
    return index == 0 && vgpu ? vgpu : &hot_device;
}

void ggml_backend_hot_set_n_threads(ggml_backend_t backend, int n) {
    if (hot::is_vgpu_backend(backend)) {
        hot::set_vgpu_threads(backend, n);
    } else {
        ((hot::engine *) backend->context)->set_n_threads(n);
    }
}

void * ggml_backend_hot_proc_address(ggml_backend_reg_t, const char * name) {
    return strcmp(name, "ggml_backend_set_n_threads") == 0 ? (void *) ggml_backend_hot_set_n_threads : nullptr;
}

const ggml_backend_reg_i ggml_backend_hot_reg_interface = {
    /* .get_name         = */ ggml_backend_hot_reg_name,
    /* .get_device_count = */ ggml_backend_hot_reg_device_count,
    /* .get_device       = */ ggml_backend_hot_reg_device,
    /* .get_proc_address = */ ggml_backend_hot_proc_address,
};

ggml_backend_reg_t ggml_backend_hot_reg() {
    static ggml_backend_reg reg = {GGML_BACKEND_API_VERSION, ggml_backend_hot_reg_interface, nullptr};
    return &reg;
}

// With the cache off nobody frees a context of ours, but what the virtual GPU held is still to be told.
struct save_at_exit {
    save_at_exit() { config(); }  // made first, so gone last: the destructor needs it
    ~save_at_exit() {
        if (config().k == 0 && config().vgpu > 0) {
            save_stats(nullptr);
        }
    }
};
const save_at_exit at_exit;

}  // namespace

GGML_BACKEND_DL_IMPL(ggml_backend_hot_reg)
