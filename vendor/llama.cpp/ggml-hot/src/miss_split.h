// How a block's missed experts are divided: some are copied to VRAM and computed there with the hits, the CPU computes
// the others meanwhile. Both links read the same memory, but together they are faster than either (docs/engine.md).
#pragma once

#include <cstddef>

namespace hot {

class miss_split {
public:
    // How many of `n_missed` experts of so many bytes to fetch, so that GPU and CPU end as early as they can: fetch and
    // hit time on one side, the rest of the experts on the other.
    int fetches(int n_missed, size_t expert_bytes) const;

    // Asked for each block that misses: whether one is to be fetched in order to measure it, whatever fetches() says. At
    // first each is, later one now and then: the CPU waits meanwhile, and what is never done would never be learnt.
    bool wants_a_fetch();

    // Measured: how long the CPU took for so many bytes, the GPU for fetching so many, and for computing with what is
    // resident.
    void cpu_took(size_t bytes, double us);
    void fetch_took(size_t bytes, double us);
    void hits_took(double us);

private:
    static constexpr int    enough  = 16;  // samples after which one alone no longer moves the mean by much
    static constexpr double join_us = 25;  // rows of the CPU on their way to the GPU, and joined there (docs/engine.md)

    static void learn(double & mean, int & n, double sample);

    double cpu_us_per_byte_   = 1.0 / 40e3;  // first guesses: 40 GB/s, 25 GB/s, 40 us
    double fetch_us_per_byte_ = 1.0 / 25e3;
    double hits_us_           = 40;
    int    n_cpu_ = 0, n_fetches_ = 0, n_hits_ = 0;
    int    blocks_to_probe_ = 0;  // blocks until the next one is measured
};

}  // namespace hot
