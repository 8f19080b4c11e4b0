#include "vgpu_backend.h"

#include "ggml-impl.h"
#include "vgpu.h"
#include "vgpu_graph.h"
#include "vgpu_queue.h"

#include <atomic>
#include <cstring>
#include <mutex>

namespace hot {

namespace {

struct vgpu_stream {
    backend_ptr                 cpu;           // with a queue, only its steps use it
    int                         n_threads = 0; // last asked for; 0: the CPU backend's own default
    std::atomic<ggml_status>    failure{GGML_STATUS_SUCCESS};  // of a graph that was queued
    std::unique_ptr<vgpu_queue> queue;         // none: synchronous. Last, so that it is drained before the rest goes
};

vgpu_stream & stream_of(ggml_backend_t backend) {
    return *(vgpu_stream *) backend->context;
}

const char * vgpu_backend_name(ggml_backend_t backend) {
    return ggml_backend_dev_name(backend->device);
}

void vgpu_backend_free(ggml_backend_t backend) {
    delete &stream_of(backend);
    delete backend;
}

ggml_status vgpu_compute_now(ggml_backend_t backend, ggml_cgraph * graph) {
    return ggml_backend_graph_compute(stream_of(backend).cpu.get(), graph);
}

// asynchronous: what a step needs of descriptions is read here, all data is read and written by the step

ggml_backend_buffer_t buffer_of(const ggml_tensor * t) {
    return t->view_src ? t->view_src->buffer : t->buffer;
}

// As with CUDA, the very buffer type of the device, not a copy of it.
void check_own_buffer(ggml_backend_t backend, const ggml_tensor * t) {
    GGML_ASSERT(buffer_of(t)->buft == ggml_backend_dev_buffer_type(backend->device) && "unsupported buffer type");
}

void vgpu_set_tensor_async(ggml_backend_t backend, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    check_own_buffer(backend, t);
    char * target = (char *) t->data + offset;
    stream_of(backend).queue->push([=] { memcpy(target, data, size); });
}

void vgpu_get_tensor_async(ggml_backend_t backend, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    check_own_buffer(backend, t);
    const char * source = (const char *) t->data + offset;
    stream_of(backend).queue->push([=] { memcpy(data, source, size); });
}

// On the source's queue, so that nothing queued there later can overwrite the source first; and after all that is
// queued on the other one, which reads the target's old data perhaps.
bool vgpu_cpy_tensor_async(ggml_backend_t backend_src, ggml_backend_t backend_dst, const ggml_tensor * src, ggml_tensor * dst) {
    if (!is_vgpu_backend(backend_src) || !stream_of(backend_src).queue ||
        !ggml_backend_dev_supports_buft(backend_src->device, buffer_of(src)->buft) ||
        !ggml_backend_dev_supports_buft(backend_dst->device, buffer_of(dst)->buft)) {
        return false;
    }
    vgpu_queue & from = *stream_of(backend_src).queue;
    vgpu_queue & to   = *stream_of(backend_dst).queue;
    const auto   copy = [target = dst->data, source = src->data, size = ggml_nbytes(src)] { memcpy(target, source, size); };
    if (&from == &to) {
        from.push(copy);
        return true;
    }
    const auto target_free = to.mark();
    from.push([=] {
        target_free->wait();
        copy();
    });
    const auto copied = from.mark();
    to.push([copied] { copied->wait(); });
    return true;
}

void vgpu_synchronize(ggml_backend_t backend) {
    stream_of(backend).queue->mark()->wait();
}

ggml_status vgpu_compute_queued(ggml_backend_t backend, ggml_cgraph * graph) {
    vgpu_stream & stream = stream_of(backend);
    const ggml_status earlier = stream.failure.exchange(GGML_STATUS_SUCCESS);
    if (earlier != GGML_STATUS_SUCCESS) {
        return earlier;
    }
    auto copy = std::make_shared<vgpu_graph>(graph);
    stream.queue->push([&stream, copy, name = vgpu_backend_name(backend)] {
        const ggml_status status = ggml_backend_graph_compute(stream.cpu.get(), copy->get());
        if (status != GGML_STATUS_SUCCESS) {
            GGML_LOG_ERROR("ggml_hot: %s: a queued graph of %d nodes failed: %s\n", name, copy->get()->n_nodes,
                           ggml_status_to_string(status));
            stream.failure = status;
        }
    });
    return GGML_STATUS_SUCCESS;
}

// events: a record is a mark in a queue; to wait for an event is to wait for the last record made before that call

struct vgpu_event {
    std::mutex                  mutex;
    std::shared_ptr<completion> last;  // none: never recorded, nothing to wait for
};

std::shared_ptr<completion> last_record(ggml_backend_event_t event) {
    vgpu_event & e = *(vgpu_event *) event->context;
    std::lock_guard<std::mutex> lock(e.mutex);
    return e.last;
}

void vgpu_event_record(ggml_backend_t backend, ggml_backend_event_t event) {
    vgpu_event & e = *(vgpu_event *) event->context;
    std::lock_guard<std::mutex> lock(e.mutex);
    e.last = stream_of(backend).queue->mark();
}

void vgpu_event_wait(ggml_backend_t backend, ggml_backend_event_t event) {
    if (const auto record = last_record(event)) {
        stream_of(backend).queue->push([record] { record->wait(); });
    }
}

ggml_guid_t vgpu_guid() {
    static ggml_guid guid = {0x76, 0x67, 0x70, 0x75, 0x2d, 0x68, 0x6f, 0x74, 0x74, 0x75, 0x6e, 0x65, 0x2d, 0x30, 0x30, 0x31};
    return &guid;
}

ggml_backend_i vgpu_backend_interface(bool async) {
    return {
        /* .get_name            = */ vgpu_backend_name,
        /* .free                = */ vgpu_backend_free,
        /* .set_tensor_async    = */ async ? vgpu_set_tensor_async : nullptr,
        /* .get_tensor_async    = */ async ? vgpu_get_tensor_async : nullptr,
        /* .set_tensor_2d_async = */ nullptr,
        /* .get_tensor_2d_async = */ nullptr,
        /* .cpy_tensor_async    = */ async ? vgpu_cpy_tensor_async : nullptr,
        /* .synchronize         = */ async ? vgpu_synchronize : nullptr,
        /* .graph_plan_create   = */ nullptr,
        /* .graph_plan_free     = */ nullptr,
        /* .graph_plan_update   = */ nullptr,
        /* .graph_plan_compute  = */ nullptr,
        /* .graph_compute       = */ async ? vgpu_compute_queued : vgpu_compute_now,
        /* .event_record        = */ async ? vgpu_event_record : nullptr,
        /* .event_wait          = */ async ? vgpu_event_wait : nullptr,
        /* .graph_optimize      = */ nullptr,
    };
}

}  // namespace

ggml_backend_t make_vgpu_backend(ggml_backend_dev_t dev, backend_ptr cpu, bool async, int max_delay_us) {
    auto stream = std::make_unique<vgpu_stream>();
    stream->cpu = std::move(cpu);
    if (async) {
        stream->queue = std::make_unique<vgpu_queue>(max_delay_us);
    }
    return new ggml_backend{vgpu_guid(), vgpu_backend_interface(async), dev, stream.release()};
}

ggml_backend_event_t new_vgpu_event(ggml_backend_dev_t dev) {
    return new ggml_backend_event{dev, new vgpu_event};
}

void free_vgpu_event(ggml_backend_dev_t, ggml_backend_event_t event) {
    delete (vgpu_event *) event->context;
    delete event;
}

void synchronize_vgpu_event(ggml_backend_dev_t, ggml_backend_event_t event) {
    if (const auto record = last_record(event)) {
        record->wait();
    }
}

bool is_vgpu_backend(ggml_backend_t backend) {
    return backend && ggml_guid_matches(backend->guid, vgpu_guid());
}

void set_vgpu_threads(ggml_backend_t backend, int n) {
    vgpu_stream & stream = stream_of(backend);
    if (n == stream.n_threads) {
        return;  // llama.cpp says it again for every batch
    }
    stream.n_threads = n;
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(stream.cpu.get()));
    const auto set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    if (!set) {
        return;
    }
    if (stream.queue) {
        stream.queue->push([set, n, cpu = stream.cpu.get()] { set(cpu, n); });
    } else {
        set(stream.cpu.get(), n);
    }
}

}  // namespace hot
