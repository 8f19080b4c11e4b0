#include "vgpu.h"

#include "ggml-impl.h"
#include "vgpu_backend.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <type_traits>

namespace hot {

namespace {

// memory

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

struct virtual_gpu {
    char                     name[16] = {};
    vgpu_memory              memory;
    bool                     async        = false;
    int                      max_delay_us = 0;
    int                      fail_alloc   = 0;
    ggml_backend_device      device       = {};
    ggml_backend_buffer_type buft         = {};
};

// Kept without destructors, so that who asks at the very end of the process, or frees a buffer then, still finds them.
constexpr size_t      max_gpus = GGML_BACKEND_META_MAX_DEVICES;  // as many as llama.cpp can use at once
virtual_gpu           gpus[max_gpus];
size_t                n_gpus = 0;
std::atomic<uint64_t> n_allocations{0};  // tried, on all of them

static_assert(std::is_trivially_destructible<virtual_gpu>::value, "see above");

virtual_gpu & gpu_of(ggml_backend_dev_t dev) {
    return *(virtual_gpu *) dev->context;
}

// buffer interface: at once and without a look at any queue, as a copy on another stream would be

void vgpu_free_buffer(ggml_backend_buffer_t buffer) {
    ggml_aligned_free(buffer->context, buffer->size);
    gpu_of(buffer->buft->device).memory.used -= buffer->size;
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

// buffer type interface; `buft` may be a copy under another address, so the device in it says whose it is

const char * vgpu_buft_name(ggml_backend_buffer_type_t buft) {
    return gpu_of(buft->device).name;
}

ggml_backend_buffer_t vgpu_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    virtual_gpu & gpu = gpu_of(buft->device);
    const uint64_t n = ++n_allocations;
    if (gpu.fail_alloc > 0 && n % (uint64_t) gpu.fail_alloc == 0) {
        GGML_LOG_WARN("ggml_hot: %s: allocation %llu, of %zu bytes, is made to fail\n", gpu.name, (unsigned long long) n, size);
        return nullptr;
    }
    if (!gpu.memory.take(size)) {
        GGML_LOG_ERROR("ggml_hot: virtual GPU out of memory: %zu MiB asked, %zu of %zu MiB used on %s\n", size >> 20,
                       gpu.memory.used.load() >> 20, gpu.memory.capacity >> 20, gpu.name);
        return nullptr;
    }
    void * data = size > 0 ? ggml_aligned_malloc(size) : nullptr;
    if (size > 0 && !data) {
        gpu.memory.used -= size;
        return nullptr;
    }
    return ggml_backend_buffer_init(buft, vgpu_buffer_interface, data, size);
}

size_t vgpu_alignment(ggml_backend_buffer_type_t) {
    return 64;
}

const ggml_backend_buffer_type_i vgpu_buft_interface = {
    /* .get_name         = */ vgpu_buft_name,
    /* .alloc_buffer     = */ vgpu_alloc_buffer,
    /* .alloc_buffer_n   = */ nullptr,
    /* .get_alignment    = */ vgpu_alignment,
    /* .get_max_size     = */ nullptr,
    /* .get_alloc_size   = */ nullptr,
    /* .get_alloc_size_n = */ nullptr,
    /* .is_host          = */ nullptr,
};

// device interface

ggml_backend_dev_t cpu_device() {
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

const char * vgpu_name(ggml_backend_dev_t dev) {
    return gpu_of(dev).name;
}

const char * vgpu_description(ggml_backend_dev_t) {
    return "virtual GPU (computes on the CPU)";
}

void vgpu_get_memory(ggml_backend_dev_t dev, size_t * free, size_t * total) {
    const vgpu_memory & memory = gpu_of(dev).memory;
    *free  = memory.capacity - memory.used;
    *total = memory.capacity;
}

enum ggml_backend_dev_type vgpu_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

void vgpu_get_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name             = vgpu_name(dev);
    props->description      = vgpu_description(dev);
    props->type             = vgpu_type(dev);
    props->caps.async       = gpu_of(dev).async;
    props->caps.host_buffer = true;
    props->caps.events      = gpu_of(dev).async;
    vgpu_get_memory(dev, &props->memory_free, &props->memory_total);
}

ggml_backend_t vgpu_init_backend(ggml_backend_dev_t dev, const char *) {
    const virtual_gpu & gpu = gpu_of(dev);
    backend_ptr cpu(ggml_backend_dev_init(cpu_device(), nullptr));
    return cpu ? make_vgpu_backend(dev, std::move(cpu), gpu.async, gpu.max_delay_us) : nullptr;
}

ggml_backend_buffer_type_t vgpu_get_buffer_type(ggml_backend_dev_t dev) {
    return &gpu_of(dev).buft;
}

// As with a real GPU, weights that stay on the host go to the type that is good for transfers, not to a repacked one.
ggml_backend_buffer_type_t vgpu_host_buffer_type(ggml_backend_dev_t) {
    return ggml_backend_cpu_buffer_type();
}

bool vgpu_supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    return ggml_backend_dev_supports_op(cpu_device(), op);
}

// By behaviour, not by address: the hot device's buffer type is a copy of this one.
bool vgpu_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    return buft->iface.get_name == vgpu_buft_name && buft->device == dev;
}

ggml_backend_event_t vgpu_event_new(ggml_backend_dev_t dev) {
    return gpu_of(dev).async ? new_vgpu_event(dev) : nullptr;
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
    /* .event_new            = */ vgpu_event_new,
    /* .event_free           = */ free_vgpu_event,
    /* .event_synchronize    = */ synchronize_vgpu_event,
};

}  // namespace

std::vector<ggml_backend_dev_t> make_vgpu_devices(ggml_backend_reg_t reg, const vgpu_options & options) {
    std::vector<ggml_backend_dev_t> devices;
    for (const size_t capacity : options.capacity) {
        if (n_gpus == max_gpus) {
            GGML_LOG_WARN("ggml_hot: no more than %zu virtual GPUs\n", max_gpus);
            break;
        }
        virtual_gpu & gpu = gpus[n_gpus];
        snprintf(gpu.name, sizeof(gpu.name), "VGPU%zu", n_gpus);
        gpu.memory.capacity = capacity;
        gpu.async           = options.async;
        gpu.max_delay_us    = options.max_delay_us;
        gpu.fail_alloc      = options.fail_alloc;
        gpu.device          = {vgpu_device_interface, reg, &gpu};
        gpu.buft            = {vgpu_buft_interface, &gpu.device, nullptr};
        devices.push_back(&gpu.device);
        n_gpus++;
    }
    return devices;
}

std::vector<vgpu_stats> vgpu_snapshot() {
    std::vector<vgpu_stats> snapshot;
    for (size_t i = 0; i < n_gpus; i++) {
        const vgpu_memory & memory = gpus[i].memory;
        snapshot.push_back({memory.capacity, memory.used, memory.peak});
    }
    return snapshot;
}

void vgpu_reset_peak() {
    for (size_t i = 0; i < n_gpus; i++) {
        gpus[i].memory.peak = gpus[i].memory.used.load();
    }
}

}  // namespace hot
