// Writes which experts the router chose, token by token, in a compact stream (docs/trace-format.md).
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace hot {

class trace_writer {
public:
    trace_writer() = default;
    ~trace_writer();
    trace_writer(const trace_writer &) = delete;
    trace_writer & operator=(const trace_writer &) = delete;

    // Starts a new file. Returns "" or what is wrong. With weights, each choice also carries its router weight.
    std::string start(const std::string & path, bool with_weights);
    std::string stop();  // "" or what is wrong (a full disk, say); harmless when not started
    bool on() const { return file_ != nullptr; }
    bool with_weights() const { return with_weights_; }
    uint64_t tokens() const { return tokens_; }
    uint64_t bytes() const { return bytes_; }

    // The next block begins another batch: the token index advances by the most tokens that a block of the last one had.
    void next_batch();

    // One block: experts[n_tokens][n_used], row by row; weights likewise, or null. `layer` counts from 0 in order of
    // first appearance; `name` (of its first expert weight) and n_expert are written with its first block. An error while writing (disk full) ends the trace, once, with a line in the log.
    void block(int layer, const std::string & name, int n_expert, int n_tokens, int n_used, const int32_t * experts,
               const float * weights);

private:
    // yours to fill
    FILE *            file_ = nullptr;
    bool              with_weights_ = false;
    uint64_t          tokens_ = 0, bytes_ = 0;
    std::vector<bool> described_;  // [layer]
};

}  // namespace hot
