// The stream on which the GPU computes for us, and when it has done what it was asked for.
//
// Where it can be, that is the stream of the context that calls: llama.cpp's own steps before and behind a block are then
// in order with ours, and nobody waits for the end of a block. llama.cpp hands its streams to nobody, so context_streams
// watches the GPU's device make them. Elsewhere (several GPUs, a device without events) it is a stream of our own, and
// a block has ended when its computation returns.
#pragma once

#include "handles.h"

#include <vector>

namespace hot {

class gpu_work {
public:
    explicit gpu_work(ggml_backend_dev_t device);
    ~gpu_work();
    gpu_work(const gpu_work &) = delete;
    gpu_work & operator=(const gpu_work &) = delete;

    // From now on work goes to this stream, behind all that was asked for before; null: to our own.
    void use(ggml_backend_t stream);

    ggml_backend_t             stream() const { return stream_; }
    ggml_backend_t             own() const { return own_.get(); }
    ggml_backend_dev_t         device() const { return device_; }
    ggml_backend_buffer_type_t buffer_type() const { return ggml_backend_dev_buffer_type(device_); }

    // Whether what comes behind us is in order with it by itself.
    bool in_order() const { return stream_ != own_.get(); }

    // Behind a piece of work: all that was asked for so far is what wait() and wait_on() mean from now on. Where what
    // comes next is not in order with it, it has ended when this returns.
    void finish();
    void wait() const;      // any thread may
    void wait_on(ggml_backend_t other) const;  // the other stream waits, its next steps come behind
    static void wait_all(ggml_backend_dev_t device);  // wait(), for all there are on the device

private:
    ggml_backend_dev_t device_;
    backend_ptr        own_;
    event_ptr          done_;     // none where the device has no events
    ggml_backend_t     stream_;
};

// A stream of our own on the device: no context's.
backend_ptr new_stream(ggml_backend_dev_t device);

// Watches devices, from its making on, for the streams that contexts make.
class context_streams {
public:
    explicit context_streams(const std::vector<ggml_backend_dev_t> & devices);
    ~context_streams();
    context_streams(const context_streams &) = delete;
    context_streams & operator=(const context_streams &) = delete;

    // The stream that this thread made last on the device, once: llama.cpp opens ours right behind its own. Or null.
    static ggml_backend_t claim(ggml_backend_dev_t device);
};

}  // namespace hot
