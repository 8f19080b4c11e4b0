#include "uploader.h"

#include "ggml-backend-impl.h"

#include <algorithm>
#include <cstring>

namespace hot {

static constexpr size_t staging_bytes   = 4 << 20;
static constexpr size_t most_at_a_time = 8;  // experts copied before the stream is waited for and they become visible

uploader::uploader(const gpu_work & gpu) : gpu_(gpu), device_(gpu.device()), stream_(new_stream(gpu.device())) {
    thread_ = std::thread([this] { serve(); });
}

uploader::~uploader() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    work_.notify_all();
    thread_.join();
}

void uploader::start(upload && u) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        backlog_ += u.bytes;
        queue_.push_back(std::move(u));
    }
    work_.notify_one();
}

size_t uploader::backlog() {
    std::lock_guard<std::mutex> lock(mutex_);
    return backlog_;
}

size_t uploader::staging() {
    std::lock_guard<std::mutex> lock(mutex_);
    return staging_total_;
}

std::vector<upload> uploader::collect() {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::move(complete_);
}

void uploader::drain() {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [this] { return backlog_ == 0; });
}

void uploader::serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        work_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
        if (stopping_) {
            return;
        }
        const size_t n = std::min(queue_.size(), most_at_a_time);
        std::vector<upload> batch(std::make_move_iterator(queue_.begin()), std::make_move_iterator(queue_.begin() + (ptrdiff_t) n));
        queue_.erase(queue_.begin(), queue_.begin() + (ptrdiff_t) n);
        lock.unlock();
        gpu_.wait_on(stream_.get());  // blocks that read what was in the slots
        for (const upload & u : batch) {
            copy(u);
        }
        ggml_backend_synchronize(stream_.get());  // from here on the bytes are there
        lock.lock();
        for (upload & u : batch) {
            backlog_ -= u.bytes;
            complete_.push_back(std::move(u));
        }
        if (backlog_ == 0) {
            idle_.notify_all();
        }
    }
}

void uploader::copy(const upload & u) {
    for (const upload::piece & p : u.pieces) {
        if (p.pinned) {
            ggml_backend_tensor_set_async(stream_.get(), p.slab, p.source, p.offset, p.size);
        } else {
            copy_staged(p);
        }
    }
}

void uploader::copy_staged(const upload::piece & p) {
    for (size_t done = 0; done < p.size;) {
        staging_buffer & staging = staging_[next_staging_];
        next_staging_ = 1 - next_staging_;
        if (!staging.data) {
            ggml_backend_buffer_type_t pinned = ggml_backend_dev_host_buffer_type(device_);
            staging.memory.reset(pinned ? ggml_backend_buft_alloc_buffer(pinned, staging_bytes) : nullptr);
            if (!staging.memory) {
                staging.plain.resize(staging_bytes);
            }
            staging.data = staging.memory ? (uint8_t *) ggml_backend_buffer_get_base(staging.memory.get()) : staging.plain.data();
            staging.free.reset(ggml_backend_event_new(device_));
            std::lock_guard<std::mutex> lock(mutex_);
            staging_total_ += staging_bytes;
        }
        if (staging.in_use) {
            if (staging.free) {
                ggml_backend_event_synchronize(staging.free.get());
            } else {
                ggml_backend_synchronize(stream_.get());
            }
        }
        const size_t n = std::min(staging_bytes, p.size - done);
        memcpy(staging.data, p.source + done, n);
        ggml_backend_tensor_set_async(stream_.get(), p.slab, staging.data, p.offset + done, n);
        if (staging.free) {
            ggml_backend_event_record(staging.free.get(), stream_.get());
        }
        staging.in_use = true;
        done += n;
    }
}

}  // namespace hot
