#include "gpu_work.h"

#include "ggml-backend-impl.h"

#include <algorithm>
#include <map>
#include <mutex>

namespace hot {

namespace {

struct all_work {
    std::mutex                   mutex;  // nothing is locked while it is held
    std::vector<const gpu_work *> works;
};

all_work & all() {
    static all_work works;
    return works;
}

}  // namespace

gpu_work::gpu_work(ggml_backend_dev_t device)
    : device_(device), own_(new_stream(device)), done_(ggml_backend_event_new(device)), stream_(own_.get()) {
    std::lock_guard<std::mutex> lock(all().mutex);
    all().works.push_back(this);
}

gpu_work::~gpu_work() {
    wait();
    std::lock_guard<std::mutex> lock(all().mutex);
    all().works.erase(std::find(all().works.begin(), all().works.end(), this));
}

void gpu_work::wait_all(ggml_backend_dev_t device) {
    std::lock_guard<std::mutex> lock(all().mutex);
    for (const gpu_work * work : all().works) {
        if (work->device_ == device) {
            work->wait();
        }
    }
}

void gpu_work::use(ggml_backend_t stream) {
    ggml_backend_t next = stream && done_ ? stream : own_.get();
    if (next != stream_) {
        wait();
        stream_ = next;
    }
}

void gpu_work::finish() {
    if (!in_order()) {
        ggml_backend_synchronize(stream_);
    }
    if (done_) {
        ggml_backend_event_record(done_.get(), stream_);
    }
}

// Not by the stream itself: it may be another thread's at work, or gone with its context.
void gpu_work::wait() const {
    if (done_) {
        ggml_backend_event_synchronize(done_.get());
    } else {
        ggml_backend_synchronize(own_.get());
    }
}

void gpu_work::wait_on(ggml_backend_t other) const {
    if (done_) {
        ggml_backend_event_wait(other, done_.get());
    } else {
        ggml_backend_synchronize(own_.get());
    }
}

namespace {

using init_function = decltype(ggml_backend_device_i::init_backend);

struct watched_devices {
    std::mutex                                  mutex;
    std::map<ggml_backend_dev_t, init_function> original;
};

watched_devices & watched() {
    static watched_devices w;
    return w;
}

std::map<ggml_backend_dev_t, ggml_backend_t> & newest() {
    static thread_local std::map<ggml_backend_dev_t, ggml_backend_t> streams;
    return streams;
}

ggml_backend_t make_and_note(ggml_backend_dev_t device, const char * params) {
    init_function make;
    {
        std::lock_guard<std::mutex> lock(watched().mutex);
        make = watched().original.at(device);
    }
    ggml_backend_t stream = make(device, params);
    newest()[device] = stream;
    return stream;
}

}  // namespace

backend_ptr new_stream(ggml_backend_dev_t device) {
    backend_ptr stream(ggml_backend_dev_init(device, nullptr));
    newest().erase(device);
    return stream;
}

context_streams::context_streams(const std::vector<ggml_backend_dev_t> & devices) {
    std::lock_guard<std::mutex> lock(watched().mutex);
    for (ggml_backend_dev_t device : devices) {
        if (watched().original.emplace(device, device->iface.init_backend).second) {
            device->iface.init_backend = make_and_note;
        }
    }
}

context_streams::~context_streams() {
    std::lock_guard<std::mutex> lock(watched().mutex);
    for (const auto & [device, make] : watched().original) {
        device->iface.init_backend = make;
    }
    watched().original.clear();
}

ggml_backend_t context_streams::claim(ggml_backend_dev_t device) {
    const auto at = newest().find(device);
    if (at == newest().end()) {
        return nullptr;
    }
    ggml_backend_t stream = at->second;
    newest().erase(at);
    return stream;
}

}  // namespace hot
