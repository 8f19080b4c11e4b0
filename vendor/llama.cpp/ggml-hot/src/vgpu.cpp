#include "vgpu.h"

#include "ggml-impl.h"

#include <atomic>
#include <cstring>

namespace hot {

// memory

namespace {

struct vgpu_memory {
    size_t              capacity = 0;
    std::atomic<size_t> used{0};
    std::atomic<size_t> peak{0};

    bool take(size_t bytes) {
        size_t before = used.load();
        do {
            if (bytes > capacity - before) {
                return false;
            }
        } while (!used.compare_exchange_weak(before, before + bytes));
        for (size_t highest = peak.load(); highest < before + bytes && !peak.compare_exchange_weak(highest, before + bytes);) {
        }
        return true;
    }
};

vgpu_memory         memory;
ggml_backend_device vgpu_device;

void vgpu_free_buffer(ggml_backend_buffer_t buffer) {
    ggml_aligned_free(buffer->context, buffer->size);
    memory.used -= buffer->size;
}

void * vgpu_get_base(ggml_backend_buffer_t buffer) {
    return buffer->context;
}

void vgpu_memset_tensor(ggml_backend_buffer_t, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    memset((char *) t->data + offset, value, size);
}

void vgpu_set_tensor(ggml_backend_buffer_t, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    memcpy((char *) t->data + offset, data, size);
}

void vgpu_get_tensor(ggml_backend_buffer_t, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    memcpy(data, (const char *) t->data + offset, size);
}

bool vgpu_cpy_tensor(ggml_backend_buffer_t, const ggml_tensor * src, ggml_tensor * dst) {
    const ggml_backend_buffer_t from = src->view_src ? src->view_src->buffer : src->buffer;
    if (!ggml_backend_buffer_is_host(from) && from->iface.get_base != vgpu_get_base) {
        return false;
    }
    memcpy(dst->data, src->data, ggml_nbytes(src));
    return true;
}

void vgpu_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    memset(buffer->context, value, buffer->size);
}

const ggml_backend_buffer_i vgpu_buffer_interface = {
    /* .free_buffer   = */ vgpu_free_buffer,
    /* .get_base      = */ vgpu_get_base,
    /* .init_tensor   = */ nullptr,
    /* .memset_tensor = */ vgpu_memset_tensor,
    /* .set_tensor    = */ vgpu_set_tensor,
    /* .get_tensor    = */ vgpu_get_tensor,
    /* .set_tensor_2d = */ nullptr,
    /* .get_tensor_2d = */ nullptr,
    /* .cpy_tensor    = */ vgpu_cpy_tensor,
    /* .clear         = */ vgpu_clear,
    /* .reset         = */ nullptr,
};

// buffer type interface

const char * vgpu_buft_name(ggml_backend_buffer_type_t) {
    return "VGPU0";
}

ggml_backend_buffer_t vgpu_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    if (!memory.take(size)) {
        GGML_LOG_ERROR("ggml_hot: virtual GPU out of memory: %zu MiB asked, %zu of %zu MiB used\n", size >> 20,
                       memory.used.load() >> 20, memory.capacity >> 20);
        return nullptr;
    }
    void * data = ggml_aligned_malloc(size);
    if (!data) {
        memory.used -= size;
        return nullptr;
    }
    return ggml_backend_buffer_init(buft, vgpu_buffer_interface, data, size);
}

size_t vgpu_alignment(ggml_backend_buffer_type_t) {
    return 64;
}

ggml_backend_buffer_type vgpu_buft = {
    /* .iface   = */ {
        /* .get_name         = */ vgpu_buft_name,
        /* .alloc_buffer     = */ vgpu_alloc_buffer,
        /* .alloc_buffer_n   = */ nullptr,
        /* .get_alignment    = */ vgpu_alignment,
        /* .get_max_size     = */ nullptr,
        /* .get_alloc_size   = */ nullptr,
        /* .get_alloc_size_n = */ nullptr,
        /* .is_host          = */ nullptr,
    },
    /* .device  = */ &vgpu_device,
    /* .context = */ nullptr,
};

// backend interface

ggml_backend_t cpu_of(ggml_backend_t backend) {
    return (ggml_backend_t) backend->context;
}

const char * vgpu_backend_name(ggml_backend_t) {
    return "VGPU0";
}

void vgpu_backend_free(ggml_backend_t backend) {
    ggml_backend_free(cpu_of(backend));
    delete backend;
}

ggml_status vgpu_graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    return ggml_backend_graph_compute(cpu_of(backend), graph);
}

ggml_guid_t vgpu_guid() {
    static ggml_guid guid = {0x76, 0x67, 0x70, 0x75, 0x2d, 0x68, 0x6f, 0x74, 0x74, 0x75, 0x6e, 0x65, 0x2d, 0x30, 0x30, 0x31};
    return &guid;
}

const ggml_backend_i vgpu_backend_interface = {
    /* .get_name            = */ vgpu_backend_name,
    /* .free                = */ vgpu_backend_free,
    /* .set_tensor_async    = */ nullptr,
    /* .get_tensor_async    = */ nullptr,
    /* .set_tensor_2d_async = */ nullptr,
    /* .get_tensor_2d_async = */ nullptr,
    /* .cpy_tensor_async    = */ nullptr,
    /* .synchronize         = */ nullptr,
    /* .graph_plan_create   = */ nullptr,
    /* .graph_plan_free     = */ nullptr,
    /* .graph_plan_update   = */ nullptr,
    /* .graph_plan_compute  = */ nullptr,
    /* .graph_compute       = */ vgpu_graph_compute,
    /* .event_record        = */ nullptr,
    /* .event_wait          = */ nullptr,
    /* .graph_optimize      = */ nullptr,
};

// device interface

ggml_backend_dev_t cpu_device() {
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

const char * vgpu_name(ggml_backend_dev_t) {
    return "VGPU0";
}

const char * vgpu_description(ggml_backend_dev_t) {
    return "virtual GPU (computes on the CPU)";
}

void vgpu_get_memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    *free  = memory.capacity - memory.used;
    *total = memory.capacity;
}

enum ggml_backend_dev_type vgpu_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

void vgpu_get_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name        = vgpu_name(dev);
    props->description = vgpu_description(dev);
    props->type        = vgpu_type(dev);
    props->caps.host_buffer = true;
    vgpu_get_memory(dev, &props->memory_free, &props->memory_total);
}

ggml_backend_t vgpu_init_backend(ggml_backend_dev_t dev, const char *) {
    ggml_backend_t cpu = ggml_backend_dev_init(cpu_device(), nullptr);
    return cpu ? new ggml_backend{vgpu_guid(), vgpu_backend_interface, dev, cpu} : nullptr;
}

ggml_backend_buffer_type_t vgpu_get_buffer_type(ggml_backend_dev_t) {
    return &vgpu_buft;
}

// As with a real GPU, weights that stay on the host go to the type that is good for transfers, not to a repacked one.
ggml_backend_buffer_type_t vgpu_host_buffer_type(ggml_backend_dev_t) {
    return ggml_backend_cpu_buffer_type();
}

bool vgpu_supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return ggml_backend_dev_supports_op(cpu_device(), op);
}

// By behaviour, not by address: the hot device's buffer type is a copy of this one.
bool vgpu_supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t buft) {
    return buft->iface.get_name == vgpu_buft_name;
}

const ggml_backend_device_i vgpu_device_interface = {
    /* .get_name             = */ vgpu_name,
    /* .get_description      = */ vgpu_description,
    /* .get_memory           = */ vgpu_get_memory,
    /* .get_type             = */ vgpu_type,
    /* .get_props            = */ vgpu_get_props,
    /* .init_backend         = */ vgpu_init_backend,
    /* .get_buffer_type      = */ vgpu_get_buffer_type,
    /* .get_host_buffer_type = */ vgpu_host_buffer_type,
    /* .buffer_from_host_ptr = */ nullptr,
    /* .supports_op          = */ vgpu_supports_op,
    /* .supports_buft        = */ vgpu_supports_buft,
    /* .offload_op           = */ nullptr,
    /* .event_new            = */ nullptr,
    /* .event_free           = */ nullptr,
    /* .event_synchronize    = */ nullptr,
};

}  // namespace

ggml_backend_dev_t make_vgpu_device(ggml_backend_reg_t reg, size_t capacity) {
    memory.capacity = capacity;
    vgpu_device = {vgpu_device_interface, reg, nullptr};
    return &vgpu_device;
}

bool is_vgpu_backend(ggml_backend_t backend) {
    return backend && ggml_guid_matches(backend->guid, vgpu_guid());
}

void set_vgpu_threads(ggml_backend_t backend, int n) {
    ggml_backend_reg_t cpu_reg = ggml_backend_dev_backend_reg(cpu_device());
    if (auto set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(cpu_reg, "ggml_backend_set_n_threads")) {
        set(cpu_of(backend), n);
    }
}

vgpu_stats vgpu_snapshot() {
    return {memory.capacity, memory.used, memory.peak};
}

}  // namespace hot
