// One pass over the cold rows of a block: the weights are cut into pieces of some ten kilobytes, and threads take one piece
// after the other, gate and up of all experts first, then down of all. A piece waits for what it needs and for nothing
// else, so there is no barrier at which all threads meet.
#pragma once

#include "chain_plan.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace hot {

// What is asked of a cold path: see cold_path::compute.
struct cold_rows {
    const std::vector<const float *> & inputs;
    const std::vector<int> &           positions;
    const std::vector<int32_t> &       experts;
    float *                            out;
};

class fused_pass {
public:
    explicit fused_pass(size_t piece_bytes) : piece_bytes_(piece_bytes) {}

    // Gets everything ready; false when the graph has to do it. The arguments must live until the work is done.
    bool prepare(const moe_block & block, const cpu_kernels & kernels, const cold_rows & rows, int n_threads);

    // Any number of threads at once, about n_threads of them; the work is done when all of them have returned.
    void work();

    size_t memory_bytes() const { return memory_.capacity(); }

private:
    // The rows that go through the same expert: the places in by_expert_ from begin to end.
    struct group_of_rows {
        int32_t expert;
        int     begin, end;
    };
    struct range {
        int begin, end;
    };
    // Pieces of one kind, and the batches that must be done before.
    struct batch {
        enum class what { convert, finish, multiply } kind;
        int     stage, product, group;
        int64_t per_piece;              // columns, or rows of weights
        int     pieces_of_row;          // convert, finish
        range   needs = {0, 0};
        int     first = 0, end = 0;     // numbers of its pieces
    };
    struct taken {
        size_t batch;  // batches_.size(): none was left
        int    piece;
    };
    struct extent {
        const char * data;
        int64_t      n;
    };
    struct alignas(64) counter {
        std::atomic<int> done{0};
    };

    bool    group_rows();
    void    find_sources(const moe_block & block);
    void    lay_out(const moe_block & block);
    void    cut();
    void    add_conversions();
    void    add_products(int stage, int group);
    void    add_finish(int stage, int group);
    void    add_batch(batch b, int n_pieces);
    taken   take(size_t from_batch);
    extent  weights_of(const taken & t) const;
    bool    may_take_ahead(const batch & b) const;
    bool    is_done(int batch_index) const;
    bool    is_ready(const batch & b) const;
    void    wait_for(const batch & b) const;
    void    do_piece(const batch & b, int piece, const taken & next);
    void    convert(int operand, const float * from, int operand_row, int64_t column, int64_t n);
    void    finish_row(const chain_plan::stage & s, int row, int64_t column, int64_t n);
    void    compute_step(const chain_plan::value & v, int row, int64_t column, int64_t n);
    void    multiply(const chain_plan::product & p, const group_of_rows & g, int64_t first, int64_t end, const taken & next);
    float * at(const chain_plan::value & v, int row) const;
    const void * operand_at(int operand, int row) const;

    const size_t       piece_bytes_;
    const moe_block *  block_ = nullptr;
    const cold_rows *  rows_  = nullptr;
    int                n_rows_ = 0;
    int                n_threads_ = 1;
    chain_plan         plan_;
    std::vector<int>   by_expert_;                  // rows, those of an expert together
    std::vector<group_of_rows>              groups_;
    std::vector<std::vector<const float *>> sources_;       // for each input: its distinct rows, ...
    std::vector<std::vector<int>>           source_of_row_; // ... and which of them a row reads
    std::vector<float *>   value_data_;             // for each value of the plan
    std::vector<uint8_t *> operand_data_;           // for each operand
    std::vector<uint8_t>   memory_;
    std::vector<batch>     batches_;
    std::vector<range>     needs_;                  // for each group: what its next batch needs
    std::vector<range>     urgent_;                 // pieces that others will wait for
    std::unique_ptr<counter[]> counters_;           // for each batch
    size_t                 n_counters_ = 0;
    alignas(64) std::atomic<int> next_piece_{0};
};

}  // namespace hot
