#include "worker_pool.h"

#include <algorithm>
#include <system_error>

namespace hot {

static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

void backoff::pause() {
    constexpr int polite_from = 256;  // a pause is 10 to 50 ns
    if (++turns_ < polite_from) {
        relax();
    } else {
        std::this_thread::yield();
    }
}

// The state's word: round (32 bits), stop (1), open (1), number of workers wanted (14), number of workers inside (16).
namespace state {
constexpr uint64_t one_inside = 1, open = 1ull << 30, stop = 1ull << 31;
constexpr int      most_workers = (1 << 14) - 1;

static uint64_t make(uint32_t round, int wanted) { return (uint64_t) round << 32 | open | (uint64_t) wanted << 16; }
static uint32_t round(uint64_t s) { return (uint32_t) (s >> 32); }
static int      wanted(uint64_t s) { return (int) (s >> 16 & most_workers); }
static int      inside(uint64_t s) { return (int) (s & 0xffff); }

// Whether this worker has something to do that it has not seen yet.
static bool calls(uint64_t s, int index, uint32_t last_round) {
    return (s & stop) || ((s & open) && round(s) != last_round && index < wanted(s));
}
}  // namespace state

worker_pool::worker_pool(std::chrono::microseconds spin) : spin_(spin) {}

worker_pool::~worker_pool() {
    state_.fetch_or(state::stop);
    for (auto & w : workers_) {
        wake(*w);
        w->thread.join();
    }
}

void worker_pool::wake(worker & w) {
    {
        std::lock_guard<std::mutex> lock(w.mutex);
        w.asleep = false;
    }
    w.woken.notify_one();
}

void worker_pool::start_workers(int n) {
    while (n_workers() < n) {
        const int index = n_workers();
        workers_.push_back(std::make_unique<worker>());
        worker & self = *workers_.back();
        try {
            self.thread = std::thread([this, &self, index] { serve(self, index); });
        } catch (const std::system_error &) {  // the system allows no more threads: those that there are do the work
            workers_.pop_back();
            return;
        }
    }
}

void worker_pool::run(int n_threads, const std::function<void()> & work) {
    const int wanted = std::min(n_threads - 1, state::most_workers);
    if (wanted <= 0) {
        work();
        return;
    }
    start_workers(wanted);
    work_ = &work;
    next_to_wake_.store(0, std::memory_order_relaxed);
    state_.store(state::make(state::round(state_.load(std::memory_order_relaxed)) + 1, std::min(wanted, n_workers())));
    wake_two();
    work();
    state_.fetch_and(~state::open, std::memory_order_relaxed);
    for (backoff waiting; state::inside(state_.load(std::memory_order_acquire)) > 0;) {
        waiting.pause();
    }
}

void worker_pool::serve(worker & self, int index) {
    uint32_t last_round = 0;
    for (;;) {
        const uint64_t s = await_round(self, index, last_round);
        if (s & state::stop) {
            return;
        }
        last_round = state::round(s);
        if (enter(last_round)) {
            wake_two();
            (*work_)();
            state_.fetch_sub(state::one_inside, std::memory_order_release);
        }
    }
}

uint64_t worker_pool::await_round(worker & self, int index, uint32_t last_round) {
    using clock = std::chrono::steady_clock;
    constexpr int turns_between_looks = 16;  // at the clock, which takes longer than a turn
    for (;;) {
        const auto end = clock::now() + spin_;
        backoff waiting;
        for (int turn = 1; turn % turns_between_looks != 0 || clock::now() < end; turn++) {
            const uint64_t s = state_.load(std::memory_order_acquire);
            if (state::calls(s, index, last_round)) {
                return s;
            }
            waiting.pause();
        }
        sleep(self, index, last_round);
    }
}

// Whoever begins a round first says so and then looks who sleeps; whoever falls asleep first says so and then looks for a
// round. Both in one order that all threads agree on, so one of the two sees the other.
void worker_pool::sleep(worker & self, int index, uint32_t last_round) {
    self.asleep = true;
    if (state::calls(state_.load(), index, last_round)) {
        self.asleep = false;
        return;
    }
    std::unique_lock<std::mutex> lock(self.mutex);
    self.woken.wait(lock, [&] { return !self.asleep; });
}

// False when the round is over: the one who waits for its end need not wait for those who had not begun.
bool worker_pool::enter(uint32_t round) {
    uint64_t s = state_.load(std::memory_order_relaxed);
    while ((s & state::open) && state::round(s) == round) {
        if (state_.compare_exchange_weak(s, s + state::one_inside, std::memory_order_acquire, std::memory_order_relaxed)) {
            return true;
        }
    }
    return false;
}

// To wake a thread takes microseconds of the waker's time: everyone wakes two, and those two more each.
void worker_pool::wake_two() {
    const int wanted = state::wanted(state_.load(std::memory_order_relaxed));
    for (int woken = 0; woken < 2 && next_to_wake_.load(std::memory_order_relaxed) < wanted;) {
        const int index = next_to_wake_.fetch_add(1, std::memory_order_relaxed);
        if (index < wanted && workers_[index]->asleep) {
            wake(*workers_[index]);
            woken++;
        }
    }
}

}  // namespace hot
