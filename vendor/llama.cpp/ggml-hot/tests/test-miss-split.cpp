// How missed experts are shared between GPU and CPU: by what was measured, and by nothing else.
#include "check.h"
#include "../src/miss_split.h"

using hot::miss_split;

static constexpr size_t expert = 1 << 20;

// A split that has learnt how long an expert takes on the CPU and over the link, and the hits on the GPU, in microseconds.
static miss_split learnt(double cpu_us, double fetch_us, double hits_us) {
    miss_split split;
    for (int i = 0; i < 1000; i++) {
        split.cpu_took(expert, cpu_us);
        split.fetch_took(expert, fetch_us);
        split.hits_took(hits_us);
    }
    return split;
}

static void test_both_end_together() {
    // equal links: GPU 20 + n * 50, CPU (8 - n) * 50 and the rows' way to the GPU
    CHECK(learnt(50, 50, 20).fetches(8, expert) == 4, "half of them: %d", learnt(50, 50, 20).fetches(8, expert));
    CHECK(learnt(50, 100, 20).fetches(9, expert) == 3, "a slow link brings fewer: %d", learnt(50, 100, 20).fetches(9, expert));
    CHECK(learnt(50, 1e5, 20).fetches(8, expert) == 0, "a hopeless one none");
    CHECK(learnt(1e5, 50, 20).fetches(8, expert) == 8, "a hopeless CPU leaves all to the link");
    CHECK(learnt(50, 50, 20).fetches(0, expert) == 0, "nothing missed, nothing fetched");
    CHECK(learnt(50, 50, 500).fetches(1, expert) == 0, "behind long work on the GPU the CPU is free");
}

static void test_larger_experts_take_longer() {
    const miss_split split = learnt(50, 60, 100);
    int before = 0;
    for (int times = 1; times <= 16; times *= 2) {
        const int n = split.fetches(4, expert * (size_t) times);
        CHECK(n >= before && n <= 4, "with %d times the bytes the hits matter less: %d after %d", times, n, before);
        before = n;
    }
}

static void test_it_measures_at_first_and_then_now_and_then() {
    miss_split split;
    for (int i = 0; i < 16; i++) {
        CHECK(split.wants_a_fetch(), "sample %d", i);
        split.fetch_took(expert, 50);
    }
    int asked = 0;
    for (int i = 0; i < 10000; i++) {
        asked += split.wants_a_fetch();
    }
    CHECK(asked > 20 && asked < 200, "%d of 10000", asked);
}

static void test_it_forgets() {
    miss_split split = learnt(50, 1e4, 20);
    CHECK(split.fetches(4, expert) == 0, "the link was busy for long");
    for (int i = 0; i < 2000; i++) {
        split.fetch_took(expert, 50);
    }
    CHECK(split.fetches(4, expert) == 2, "it is free again: %d", split.fetches(4, expert));
}

static void test_a_hiccup_is_not_the_rule() {
    miss_split split = learnt(50, 50, 20);
    split.fetch_took(expert, 1e6);
    CHECK(split.fetches(8, expert) == 4, "one slow fetch: %d", split.fetches(8, expert));
}

int main() {
    test_both_end_together();
    test_larger_experts_take_longer();
    test_it_measures_at_first_and_then_now_and_then();
    test_it_forgets();
    test_a_hiccup_is_not_the_rule();
    return verdict("miss split");
}
