// Threads that stay awake between pieces of work that follow each other closely. A layer's cold experts take some ten
// microseconds, and the next layer's come as soon after: waking threads anew for each would take as long as the work.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace hot {

// One turn of a waiting loop: easy on the core at first, and from some ten microseconds on it lets other threads run,
// which matters where there are more threads than cores.
class backoff {
public:
    void pause();

private:
    int turns_ = 0;
};

class worker_pool {
public:
    // A worker that has had nothing to do for `spin` falls asleep.
    explicit worker_pool(std::chrono::microseconds spin);
    ~worker_pool();
    worker_pool(const worker_pool &) = delete;
    worker_pool & operator=(const worker_pool &) = delete;

    // Calls work() on this thread and on up to n_threads - 1 workers at the same time, and returns when all calls have
    // returned. Workers that come too late to help are not waited for, so the calls must share out the work among as
    // many of them as there happen to be, the last one doing all that is left. Not to be called by two threads at once.
    void run(int n_threads, const std::function<void()> & work);

    // Workers are started when they are first needed; a smaller number of threads leaves some of them asleep.
    int n_workers() const { return (int) workers_.size(); }

private:
    struct alignas(64) worker {
        std::atomic<bool>       asleep{false};
        std::mutex              mutex;
        std::condition_variable woken;
        std::thread             thread;
    };

    void     start_workers(int n);
    void     serve(worker & self, int index);
    uint64_t await_round(worker & self, int index, uint32_t last_round);
    void     sleep(worker & self, int index, uint32_t last_round);
    bool     enter(uint32_t round);
    static void wake(worker & w);
    void     wake_two();

    const std::chrono::microseconds      spin_;
    std::vector<std::unique_ptr<worker>> workers_;  // changes between rounds; workers look at it within one
    const std::function<void()> *        work_ = nullptr;
    // All that workers need to know of a round, in one word, so that entering a round that has just closed fails.
    alignas(64) std::atomic<uint64_t>    state_{0};
    alignas(64) std::atomic<int>         next_to_wake_{0};
};

}  // namespace hot
