#include "vgpu_queue.h"

#include <atomic>
#include <chrono>

namespace hot {

void completion::set() {
    std::lock_guard<std::mutex> lock(mutex_);
    done_ = true;
    changed_.notify_all();
}

void completion::wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
}

// Another seed for every queue, but the same ones in every run: a failure that the delays brought about comes again.
static unsigned next_seed() {
    static std::atomic<unsigned> n{0};
    return ++n;
}

vgpu_queue::vgpu_queue(int max_delay_us) : max_delay_us_(max_delay_us), random_(next_seed()), thread_([this] { work(); }) {}

vgpu_queue::~vgpu_queue() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

void vgpu_queue::push(std::function<void()> step) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        steps_.push_back(std::move(step));
    }
    changed_.notify_all();
}

std::shared_ptr<completion> vgpu_queue::mark() {
    auto reached = std::make_shared<completion>();
    push([reached] { reached->set(); });
    return reached;
}

void vgpu_queue::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        changed_.wait(lock, [this] { return stop_ || !steps_.empty(); });
        if (steps_.empty()) {
            return;
        }
        std::function<void()> step = std::move(steps_.front());
        steps_.pop_front();
        lock.unlock();
        if (max_delay_us_ > 0) {
            std::this_thread::sleep_for(std::chrono::microseconds(std::uniform_int_distribution<int>(0, max_delay_us_)(random_)));
        }
        step();
        step = nullptr;  // what it owned goes here, not under the lock
        lock.lock();
    }
}

}  // namespace hot
