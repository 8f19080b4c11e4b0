// The queue of an asynchronous virtual GPU: steps that one thread does in order, as a GPU does those of a stream.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

namespace hot {

// Something that happens once and that any thread can wait for.
class completion {
  public:
    void set();
    void wait();

  private:
    std::mutex              mutex_;
    std::condition_variable changed_;
    bool                    done_ = false;
};

class vgpu_queue {
  public:
    explicit vgpu_queue(int max_delay_us);  // each step waits 0 to this long, at random, before it is done
    ~vgpu_queue();                          // does what is still queued
    vgpu_queue(const vgpu_queue &) = delete;
    vgpu_queue & operator=(const vgpu_queue &) = delete;

    void push(std::function<void()> step);
    std::shared_ptr<completion> mark();     // set as soon as everything pushed before it is done

  private:
    void work();

    const int                         max_delay_us_;
    std::minstd_rand                  random_;
    std::mutex                        mutex_;  // for the two below
    std::deque<std::function<void()>> steps_;
    bool                              stop_ = false;
    std::condition_variable           changed_;
    std::thread                       thread_;
};

}  // namespace hot
