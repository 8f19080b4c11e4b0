// The plug-in's face to ggml: backend, device and registry of the hot-expert device, in ggml's own order.
//
// The devices are of type ACCEL, so that llama.cpp puts them between the GPUs and the CPU of every context, and they
// accept just the expert products whose weights were left in host memory. docs/engine.md has the whole story.

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "gpu_work.h"
#include "moe_block.h"
#include "service.h"
#include "settings.h"
#include "vgpu.h"

#include <algorithm>
#include <cstring>
#include <deque>

namespace {

ggml_backend_reg_t ggml_backend_hot_reg();

const hot::settings & config() {
    static const hot::settings settings = hot::settings::from_environment();
    return settings;
}

hot::service & service() {
    static hot::service s(config());
    return s;
}

// one device for each GPU

// The scheduler takes no more than 16 back-ends: the GPUs, ours, the CPU, and room for one more. Layers of GPUs without
// a device of ours take the stock path.
size_t most_devices(size_t n_gpus) {
    return n_gpus < 14 ? std::max<size_t>(1, 14 - n_gpus) : 1;
}

struct hot_device {
    std::string              name;         // "HOT", or "HOT0", "HOT1", ... where there are several
    ggml_backend_dev_t       cache;        // the GPU that holds the slots, or the CPU device
    ggml_backend_buffer_type buffer_type;  // see ggml_backend_hot_device_buffer_type
    ggml_backend_buffer_i    memory;       // the GPU's functions for its buffers
    ggml_backend_device      face;
};

const std::vector<ggml_backend_dev_t> & virtual_gpus() {
    static const std::vector<ggml_backend_dev_t> gpus = hot::make_vgpu_devices(ggml_backend_hot_reg(), config().vgpu);
    return gpus;
}

std::vector<ggml_backend_dev_t> devices_of(enum ggml_backend_dev_type type) {
    std::vector<ggml_backend_dev_t> found;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        if (ggml_backend_dev_type(ggml_backend_dev_get(i)) == type) {
            found.push_back(ggml_backend_dev_get(i));
        }
    }
    return found;
}

std::vector<ggml_backend_dev_t> cache_devices() {
    std::vector<ggml_backend_dev_t> found = virtual_gpus();  // asked for by name, so they come before real ones
    for (const auto type : {GGML_BACKEND_DEVICE_TYPE_GPU, GGML_BACKEND_DEVICE_TYPE_IGPU, GGML_BACKEND_DEVICE_TYPE_CPU}) {
        if (found.empty()) {
            found = devices_of(type);
        }
    }
    found.resize(std::min(found.size(), most_devices(found.size())));
    return found;
}

hot_device & device_of(ggml_backend_dev_t face) {
    return *(hot_device *) face->context;
}

// backend interface

hot::context & context_of(ggml_backend_t backend) {
    return *(hot::context *) backend->context;
}

const char * ggml_backend_hot_name(ggml_backend_t backend) {
    return device_of(backend->device).name.c_str();
}

void ggml_backend_hot_free(ggml_backend_t backend) {
    service().close(&context_of(backend));
    delete backend;
}

ggml_status ggml_backend_hot_graph_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    return service().compute(context_of(backend), graph);
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
    /* .synchronize         = */ nullptr,  // a graph is finished when graph_compute returns, or in order; see wait_first
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

const char * ggml_backend_hot_device_name(ggml_backend_dev_t dev) {
    return device_of(dev).name.c_str();
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
    try {
        return new ggml_backend{ggml_backend_hot_guid(), ggml_backend_hot_interface, dev, service().open(device_of(dev).cache, hot::context_streams::claim(device_of(dev).cache))};
    } catch (const std::exception & error) {
        GGML_LOG_ERROR("ggml_hot: %s\n", error.what());
        return nullptr;
    }
}

// A copy of the GPU's buffer type: the same memory under another address. So activations stay in VRAM and nothing is
// copied between GPU and device; and yet the scheduler, which compares addresses, leaves the block's later steps to us.
ggml_backend_buffer_type_t ggml_backend_hot_device_buffer_type(ggml_backend_dev_t dev) {
    return &device_of(dev).buffer_type;
}

// A graph may still be under way when graph_compute returns: what the GPU does next comes behind it by itself. Who reads or
// writes its tensors from the host waits here. (The scheduler's own waiting does not know the two apart.)

hot_device & device_of(ggml_backend_buffer_type_t buft);

template <auto member> struct wait_first;

template <typename result, typename... args, result (*ggml_backend_buffer_i::* member)(ggml_backend_buffer_t, args...)>
struct wait_first<member> {
    static result call(ggml_backend_buffer_t buffer, args... a) {
        const hot_device & device = device_of(buffer->buft);
        if (buffer->buft == &device.buffer_type) {  // else it is a stand-in of ours (stand_in.h), in order anyway
            hot::gpu_work::wait_all(device.cache);
        }
        return (device.memory.*member)(buffer, a...);
    }
    static void install(ggml_backend_buffer_i & functions) {
        if (functions.*member) {
            functions.*member = call;
        }
    }
};

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size);

// A step behind a product goes where the product goes; a product goes to the device of the GPU that runs its layer.
bool ggml_backend_hot_device_supports_op(ggml_backend_dev_t dev, const ggml_tensor * op) {
    if (hot::is_view(op)) {
        return true;
    }
    const ggml_tensor * product = hot::product_of(op);
    if (!product || !service().takes(product->src[2]->ne[1]) || !hot::is_host_product(product)) {
        return false;
    }
    // a layer that no GPU runs is none of a GPU's, which the user may have left out on purpose
    ggml_backend_dev_t cache = device_of(dev).cache, home = hot::home_of(product);
    const bool ours = home ? home == cache : ggml_backend_dev_type(cache) == GGML_BACKEND_DEVICE_TYPE_CPU;
    return ours && ggml_backend_dev_supports_op(cache, op);
}

bool ggml_backend_hot_device_supports_buft(ggml_backend_dev_t dev, ggml_backend_buffer_type_t buft) {
    return ggml_backend_buft_is_host(buft) || ggml_backend_dev_supports_buft(device_of(dev).cache, buft);
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

// Off means absent: without GGML_HOT_K or GGML_HOT_MIB there is no hot device.
std::deque<hot_device> & hot_devices() {
    static std::deque<hot_device> devices = [] {
        std::deque<hot_device> made;  // its elements stay where they are
        if (config().enabled()) {
            const std::vector<ggml_backend_dev_t> caches = cache_devices();
            for (size_t i = 0; i < caches.size(); i++) {
                made.push_back({caches.size() == 1 ? "HOT" : "HOT" + std::to_string(i), caches[i], *ggml_backend_dev_buffer_type(caches[i]), {},
                                {ggml_backend_hot_device_interface, ggml_backend_hot_reg(), nullptr}});
                made.back().face.context = &made.back();
                made.back().buffer_type.iface.alloc_buffer = alloc_buffer;
            }
        }
        return made;
    }();
    // where blocks of one GPU feed another, a block must have ended when it returns
    static const hot::context_streams watch(config().in_order && devices.size() == 1 ? std::vector<ggml_backend_dev_t>{devices[0].cache} : std::vector<ggml_backend_dev_t>{});
    return devices;
}

// Whose buffer type it is, or whose GPU's.
hot_device & device_of(ggml_backend_buffer_type_t buft) {
    return *std::find_if(hot_devices().begin(), hot_devices().end(), [&](const hot_device & d) {
        return buft == &d.buffer_type || buft == ggml_backend_dev_buffer_type(d.cache);
    });
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    hot_device & device = device_of(buft);
    ggml_backend_buffer_t buffer = ggml_backend_dev_buffer_type(device.cache)->iface.alloc_buffer(buft, size);
    if (buffer) {
        device.memory = buffer->iface;
        wait_first<&ggml_backend_buffer_i::memset_tensor>::install(buffer->iface);
        wait_first<&ggml_backend_buffer_i::set_tensor>::install(buffer->iface);
        wait_first<&ggml_backend_buffer_i::get_tensor>::install(buffer->iface);
        wait_first<&ggml_backend_buffer_i::set_tensor_2d>::install(buffer->iface);
        wait_first<&ggml_backend_buffer_i::get_tensor_2d>::install(buffer->iface);
        wait_first<&ggml_backend_buffer_i::cpy_tensor>::install(buffer->iface);
        wait_first<&ggml_backend_buffer_i::clear>::install(buffer->iface);
    }
    return buffer;
}

// registry interface

const char * ggml_backend_hot_reg_name(ggml_backend_reg_t) {
    return "HOT";
}

size_t ggml_backend_hot_reg_device_count(ggml_backend_reg_t) {
    return virtual_gpus().size() + hot_devices().size();
}

ggml_backend_dev_t ggml_backend_hot_reg_device(ggml_backend_reg_t, size_t index) {
    const size_t n_virtual = virtual_gpus().size();
    return index < n_virtual ? virtual_gpus()[index] : &hot_devices()[index - n_virtual].face;
}

void ggml_backend_hot_set_n_threads(ggml_backend_t backend, int n) {
    if (hot::is_vgpu_backend(backend)) {
        hot::set_vgpu_threads(backend, n);
    } else {
        service().begin_batch(context_of(backend), n);
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

// With the cache off nobody closes a context of ours, but what the virtual GPUs held is still to be told.
struct save_at_exit {
    save_at_exit() { service(); }  // made first, so gone last: the destructor needs it
    ~save_at_exit() {
        if (!config().enabled() && !config().vgpu.capacity.empty()) {
            service().save_stats();
        }
    }
};
const save_at_exit at_exit;

}  // namespace

GGML_BACKEND_DL_IMPL(ggml_backend_hot_reg)
