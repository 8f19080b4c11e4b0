// The pool of threads by itself, so that it can be watched by ThreadSanitizer in any build.
#include "../src/worker_pool.h"
#include "check.h"

#include <algorithm>
#include <thread>

using hot::backoff;
using hot::worker_pool;
using std::chrono::microseconds;

// Work in two halves, the second of which needs all of the first: what a layer's products and the next ones are.
struct halves {
    static constexpr int n = 64;

    std::atomic<int> next{0}, first_done{0}, at_once{0}, most_at_once{0};
    int  first[n] = {}, second[n] = {};
    bool early = false;

    void work() {
        const int now = ++at_once;
        for (int seen = most_at_once; now > seen && !most_at_once.compare_exchange_weak(seen, now);) {}
        for (int i; (i = next.fetch_add(1)) < 2 * n;) {
            if (i < n) {
                first[i]++;
                first_done.fetch_add(1, std::memory_order_release);
                continue;
            }
            for (backoff waiting; first_done.load(std::memory_order_acquire) < n;) {
                waiting.pause();
            }
            second[i - n] += first[2 * n - 1 - i];
        }
        at_once--;
    }
};

static void run_once(worker_pool & pool, int n_threads) {
    halves h;
    pool.run(n_threads, [&] { h.work(); });
    const bool all = std::all_of(h.second, h.second + halves::n, [](int v) { return v == 1; });
    CHECK(all, "every piece is done once, after what it needs");
    CHECK(h.at_once == 0, "no call may still run when run() returns");
    CHECK(h.most_at_once <= n_threads, "%d threads at once, %d asked for", h.most_at_once.load(), n_threads);
}

static void rounds_follow_each_other() {
    worker_pool pool(microseconds(200));
    for (int i = 0; i < 2000; i++) {
        run_once(pool, 4);
    }
}

static void sleepers_are_woken() {
    worker_pool pool(microseconds(1));
    for (int i = 0; i < 200; i++) {
        std::this_thread::sleep_for(microseconds(i % 7 * 50));
        run_once(pool, 6);
    }
}

// All wait for all: it ends only when each of them has come.
static void all_that_are_asked_for_come() {
    worker_pool pool(microseconds(50));
    for (int n_threads : {2, 8, 3, 8}) {
        std::this_thread::sleep_for(microseconds(500));
        std::atomic<int> here{0};
        pool.run(n_threads, [&] {
            here++;
            for (backoff waiting; here < n_threads;) {
                waiting.pause();
            }
        });
        CHECK(here == n_threads, "%d came, %d asked for", here.load(), n_threads);
    }
    CHECK(pool.n_workers() == 7, "workers are kept: %d", pool.n_workers());
}

static void number_of_threads_changes() {
    worker_pool pool(microseconds(20));
    for (int i = 0; i < 400; i++) {
        run_once(pool, 1 + i * 5 % 8);
    }
}

static void pools_come_and_go() {
    for (int i = 0; i < 50; i++) {
        worker_pool pool(microseconds(i % 3 * 100));
        for (int k = 0; k < i % 4; k++) {
            run_once(pool, 5);
        }
    }
}

int main() {
    rounds_follow_each_other();
    sleepers_are_woken();
    all_that_are_asked_for_come();
    number_of_threads_changes();
    pools_come_and_go();
    return verdict("worker pool");
}
