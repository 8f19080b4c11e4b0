// Copies experts into their slots, on a thread and a stream of its own, so that no token ever waits for a copy.
#pragma once

#include "gpu_work.h"
#include "handles.h"
#include "policy.h"

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace hot {

struct cached_layer;

// One expert on its way: a piece for each of the layer's weights.
struct upload {
    struct piece {
        ggml_tensor * slab;
        size_t        offset;  // bytes, in the slab
        const char *  source;  // host memory
        size_t        size;    // bytes
        bool          pinned;  // the GPU can read the source by itself
    };
    cached_layer *     layer;
    swap               what;
    std::vector<piece> pieces;
    size_t             bytes = 0;
};

class uploader {
public:
    explicit uploader(const gpu_work & gpu);
    ~uploader();  // finishes the copy at hand, drops the rest
    uploader(const uploader &) = delete;
    uploader & operator=(const uploader &) = delete;

    void   start(upload && u);
    size_t backlog();                  // bytes started and not yet complete
    std::vector<upload> collect();     // those complete since the last call: their bytes are in the slabs
    size_t staging();                  // bytes of host memory that pageable experts pass through
    void   drain();                    // returns when nothing is under way; collect() then has the last ones

private:
    void serve();
    void copy(const upload & u);
    void copy_staged(const upload::piece & p);

    const gpu_work &   gpu_;
    ggml_backend_dev_t device_;
    backend_ptr        stream_;
    // pageable memory goes through these two, pinned where the GPU offers it: one is filled while the other is read
    struct staging_buffer {
        buffer_ptr           memory;
        std::vector<uint8_t> plain;
        uint8_t *            data = nullptr;
        event_ptr            free;     // recorded behind the copy that reads it
        bool                 in_use = false;
    } staging_[2];
    int next_staging_ = 0;

    std::mutex              mutex_;
    std::condition_variable work_;     // the thread waits for it
    std::condition_variable idle_;     // drain waits for it
    std::deque<upload>      queue_;
    std::vector<upload>     complete_;
    size_t                  backlog_ = 0;
    size_t                  staging_total_ = 0;
    bool                    stopping_ = false;
    std::thread             thread_;   // last: it uses all of the above
};

}  // namespace hot
