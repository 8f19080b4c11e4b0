// Writes which experts the router chose, token by token, in a compact stream (docs/trace-format.md).
#pragma once

#include <cstdint>
#include <cstdio>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace hot {

// Not for several threads at once.
class trace_writer {
public:
    trace_writer() = default;
    ~trace_writer();
    trace_writer(const trace_writer &) = delete;
    trace_writer & operator=(const trace_writer &) = delete;

    // Starts a new file; one that is there is overwritten only if it is a trace. Returns "" or what is wrong.
    // With weights, each choice also carries its router weight.
    std::string start(const std::string & path, bool with_weights);
    std::string stop();  // "" or what is wrong (a full disk, say, also if it ended the trace long ago); harmless when not started
    bool on() const { return file_ != nullptr; }
    bool with_weights() const { return with_weights_; }
    uint64_t tokens() const { return tokens_; }
    uint64_t bytes() const { return bytes_ + pending_.size(); }

    // One block: experts[n_tokens][n_used], row by row; weights likewise, or null (then they are NaN). `layer` counts
    // from 0 in order of first appearance; `name` (of its first expert weight) and n_expert are written with its first
    // block, and must not change. Layer 0 advances the token index; the trace begins with the first block of layer 0.
    // An error while writing (disk full) ends the trace, once, with a line in the log.
    void block(int layer, const std::string & name, int n_expert, int n_tokens, int n_used, const int32_t * experts,
               const float * weights);

    // A block that was computed alone and belongs to no token (see routing_trace); not before the first block of layer 0.
    void lone_block(int layer, const std::string & name, int n_expert, int n_tokens, int n_used, const int32_t * experts,
                    const float * weights);

private:
    struct layer_facts {
        int         n_expert = 0;  // 0 until it is described
        std::string name;
    };

    bool begin_block(int layer, const std::string & name, int n_expert, int n_tokens, int n_used, const int32_t * experts);
    void put_sizes(char kind, int layer, int n_tokens, int n_used);
    void put_choices(int n_expert, size_t n, const int32_t * experts, const float * weights);
    std::string describe(int layer, const std::string & name, int n_expert);
    void put_number(uint64_t value);
    void put_u16(uint16_t value);
    void put_ids(const int32_t * experts, size_t n, int n_expert);
    bool write_out();
    void fail(const std::string & why);

    FILE *                   file_ = nullptr;
    bool                     with_weights_ = false;
    uint64_t                 tokens_ = 0, bytes_ = 0;  // bytes: in the file
    std::string              error_;    // what ended the trace, until stop() has told it
    std::vector<uint8_t>     pending_;  // whole records, to be written together
    std::vector<layer_facts> layers_;
    struct {
        int layer = 0, n_tokens = 0, n_used = 0;
    } last_;                                // the block before
};

// The routing of a whole process, from all its GPUs and contexts, told block by block.
//
// A prompt longer than the bypass shows us one block only: its last layer's, where llama.cpp keeps just the tokens whose
// results it needs. That is no token's whole routing, but the cache serves it: a batch with a single block becomes a lone
// block, written when its layer has a number; so the trace's layer 0 is the first layer of the model.
class routing_trace {
public:
    std::string start(const std::string & path, bool with_weights);
    std::string stop();
    bool on();
    bool with_weights();
    void facts(bool & on, uint64_t & tokens, uint64_t & bytes);

    void begin_batch();

    // `layer` is the address of the layer's first expert weight; the rest as in trace_writer::block.
    void block(const void * layer, const std::string & name, int n_expert, int n_tokens, int n_used, const int32_t * experts,
               std::vector<float> weights);

private:
    struct held_block {
        const void *         layer;
        std::string          name;
        int                  n_expert, n_tokens, n_used;
        std::vector<int32_t> experts;
        std::vector<float>   weights;  // or empty
    };
    void write(const held_block & b);
    void write_lone(const held_block & b, int number);
    void keep_lone();

    std::mutex                  mutex_;
    trace_writer                writer_;
    std::map<const void *, int> layers_;     // number in the trace
    std::vector<held_block>     first_;      // the first block of this batch, until there is a second
    std::deque<held_block>      lone_;       // lone blocks of layers without a number yet
    bool                        batch_is_known_ = false;  // from its beginning
    bool                        batch_is_new_ = false;
};

}  // namespace hot
