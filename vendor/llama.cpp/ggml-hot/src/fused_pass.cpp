#include "fused_pass.h"

#include "worker_pool.h"

#include <algorithm>
#include <numeric>

namespace hot {

// From this number of rows of one expert on, ggml's CPU backend has a matrix kernel, which is faster than row by row.
static constexpr int rows_for_a_matrix_kernel = 8;
// Kernels work on vectors of numbers, and on what is left behind the last whole one in another way: pieces of rows are
// multiples of any vector's and any quantization's length, so that both fall where they fall in a whole row.
static constexpr int64_t columns_together = 256;
static constexpr int64_t rows_together    = 16;  // results of a cache line

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

// Always inlined: GCC drops calls of functions that do nothing but prefetch, as having no effect.
[[gnu::always_inline]] static inline void prefetch(const char * begin, const char * end) {
    for (const char * line = begin; line < end; line += 64) {
        __builtin_prefetch(line);
    }
}

bool fused_pass::prepare(const moe_block & block, const cpu_kernels & kernels, const cold_rows & rows, int n_threads) {
    block_     = &block;
    rows_      = &rows;
    n_rows_    = (int) rows.positions.size();
    n_threads_ = n_threads;
    if (!group_rows() || !plan_.make(block, kernels)) {
        return false;
    }
    find_sources(block);
    lay_out(block);
    cut();
    return true;
}

bool fused_pass::group_rows() {
    by_expert_.resize((size_t) n_rows_);
    std::iota(by_expert_.begin(), by_expert_.end(), 0);
    const auto & experts = rows_->experts;
    std::stable_sort(by_expert_.begin(), by_expert_.end(), [&](int a, int b) { return experts[(size_t) a] < experts[(size_t) b]; });
    groups_.clear();
    for (int i = 0; i < n_rows_; i++) {
        const int32_t expert = experts[(size_t) by_expert_[(size_t) i]];
        if (groups_.empty() || groups_.back().expert != expert) {
            groups_.push_back({expert, i, i});
        }
        groups_.back().end = i + 1;
    }
    return std::all_of(groups_.begin(), groups_.end(), [](const group_of_rows & g) { return g.end - g.begin < rows_for_a_matrix_kernel; });
}

// Rows of a token mostly read the same row of an input: it is converted once.
void fused_pass::find_sources(const moe_block & block) {
    sources_.resize(block.inputs.size());
    source_of_row_.resize(block.inputs.size());
    for (size_t k = 0; k < block.inputs.size(); k++) {
        sources_[k].clear();
        source_of_row_[k].clear();
        const bool per_token = moe_block::per_token(block.inputs[k]);
        for (int position : rows_->positions) {
            const int64_t row  = per_token ? position / block.n_used : position;
            const float * data = rows_->inputs[k] + row * block.inputs[k]->ne[0];
            const auto    same = std::find(sources_[k].begin(), sources_[k].end(), data);
            source_of_row_[k].push_back((int) (same - sources_[k].begin()));
            if (same == sources_[k].end()) {
                sources_[k].push_back(data);
            }
        }
    }
}

void fused_pass::lay_out(const moe_block & block) {
    size_t     used  = 0;
    const auto place = [&](size_t bytes) {
        const size_t offset = used;
        used += GGML_PAD(bytes, 64);
        return offset;
    };
    std::vector<size_t> value_offsets(plan_.values.size()), operand_offsets(plan_.operands.size());
    const int out = plan_.value_of(block.out);
    for (size_t i = 0; i < plan_.values.size(); i++) {
        const chain_plan::value & v = plan_.values[i];
        if (v.input < 0 && v.home == (int) i && (int) i != out) {
            value_offsets[i] = place((size_t) n_rows_ * (size_t) v.width() * sizeof(float));
        }
    }
    for (size_t i = 0; i < plan_.operands.size(); i++) {
        const chain_plan::operand & o = plan_.operands[i];
        operand_offsets[i] = place((size_t) n_rows_ * ggml_row_size(o.type, plan_.values[(size_t) o.value].width()));
    }
    if (memory_.size() < used + 64) {
        memory_.resize(used + 64);
    }
    uint8_t * base = memory_.data() + (64 - (uintptr_t) memory_.data() % 64) % 64;
    value_data_.resize(plan_.values.size());
    for (size_t i = 0; i < value_data_.size(); i++) {
        value_data_[i] = (int) i == out ? rows_->out : (float *) (base + value_offsets[i]);
    }
    operand_data_.resize(plan_.operands.size());
    for (size_t i = 0; i < operand_data_.size(); i++) {
        operand_data_[i] = base + operand_offsets[i];
    }
}

// Cuts the work into pieces, in an order in which what a piece needs always comes before it: then the threads that took
// those are at work on them, and waiting always ends. Mostly there is nothing to wait for: what finishes a group's rows
// stands behind the next group's products, when its own have had time to be done.
void fused_pass::cut() {
    batches_.clear();
    urgent_.clear();
    add_conversions();
    needs_.assign(groups_.size(), {0, (int) batches_.size()});
    const int last = (int) groups_.size() - 1, last_stage = (int) plan_.stages.size() - 1;
    for (int stage = 0; stage <= last_stage; stage++) {
        for (int group = 0; group <= last; group++) {
            if (stage > 0 && group == std::min(1, last)) {
                add_finish(stage, last);
            }
            add_products(stage, group);
            if (group == last && !batches_.empty()) {
                urgent_.push_back({batches_.back().end - n_threads_, batches_.back().end});
            }
            if (stage < last_stage && group > 0) {
                add_finish(stage + 1, group - 1);
            }
        }
    }
    if (n_counters_ < batches_.size()) {
        n_counters_ = 2 * batches_.size();
        counters_.reset(new counter[n_counters_]);
    }
    for (size_t i = 0; i < batches_.size(); i++) {
        counters_[i].done.store(0, std::memory_order_relaxed);
    }
    next_piece_.store(0, std::memory_order_relaxed);
}

// The inputs that products read.
void fused_pass::add_conversions() {
    for (int operand : plan_.stages[0].operands) {
        const chain_plan::value & v = plan_.values[(size_t) plan_.operands[(size_t) operand].value];
        const int     n_sources = (int) sources_[(size_t) v.input].size();
        const int64_t columns   = n_sources == 1 ? columns_together : round_up(v.width(), columns_together);
        const int     pieces    = (int) ((v.width() + columns - 1) / columns);
        add_batch({batch::what::convert, 0, operand, 0, columns, pieces}, n_sources * pieces);
    }
}

void fused_pass::add_products(int stage, int group) {
    const auto & products = plan_.stages[(size_t) stage].products;
    const range  needed   = needs_[(size_t) group];
    const int    begin    = (int) batches_.size();
    for (int p = 0; p < (int) products.size(); p++) {
        const ggml_tensor * weight = products[(size_t) p].weight();
        const int64_t rows = std::max<int64_t>(1, (int64_t) (piece_bytes_ / weight->nb[1]) / rows_together) * rows_together;
        add_batch({batch::what::multiply, stage, p, group, rows, 0, needed}, (int) ((weight->ne[1] + rows - 1) / rows));
    }
    if (!products.empty()) {
        needs_[(size_t) group] = {begin, (int) batches_.size()};
    }
}

void fused_pass::add_finish(int stage, int group) {
    const chain_plan::stage & s = plan_.stages[(size_t) stage];
    if (s.width == 0) {
        return;
    }
    // with many rows there are pieces enough
    const bool    split   = s.by_columns && n_rows_ <= 2 * rows_for_a_matrix_kernel;
    const int64_t columns = split ? columns_together : round_up(s.width, columns_together);
    const int     pieces  = (int) ((s.width + columns - 1) / columns);
    const int     begin   = (int) batches_.size();
    const group_of_rows & g = groups_[(size_t) group];
    add_batch({batch::what::finish, stage, 0, group, columns, pieces, needs_[(size_t) group]}, (g.end - g.begin) * pieces);
    needs_[(size_t) group] = {begin, begin + 1};
    urgent_.push_back({batches_.back().first, batches_.back().end});
}

void fused_pass::add_batch(batch b, int n_pieces) {
    b.first = batches_.empty() ? 0 : batches_.back().end;
    b.end   = b.first + n_pieces;
    batches_.push_back(b);
}

void fused_pass::work() {
    for (taken now = take(0); now.batch < batches_.size();) {
        const batch & b     = batches_[now.batch];
        const bool    ahead = may_take_ahead(b);
        const taken   next  = ahead ? take(now.batch) : taken{batches_.size(), 0};
        if (!is_ready(b)) {
            for (const extent & w : {weights_of(now), weights_of(next)}) {
                prefetch(w.data, w.data + w.n);
            }
            wait_for(b);
        }
        do_piece(b, now.piece - b.first, next);
        counters_[now.batch].done.fetch_add(1, std::memory_order_release);
        now = ahead ? next : take(now.batch);
    }
}

// A thread takes the next piece before the present one is done, so that its weights come on their way meanwhile. What a
// piece needs was taken before it, by threads that are at it or at something yet earlier: so waiting still ends. But
// pieces that others are about to wait for go to whoever is free.
bool fused_pass::may_take_ahead(const batch & b) const {
    const int  next   = next_piece_.load(std::memory_order_relaxed);
    const auto has_it = [&](const range & r) { return r.begin <= next && next < r.end; };
    return b.kind == batch::what::multiply && std::none_of(urgent_.begin(), urgent_.end(), has_it);
}

fused_pass::taken fused_pass::take(size_t from_batch) {
    const int piece = next_piece_.fetch_add(1, std::memory_order_relaxed);
    while (from_batch < batches_.size() && piece >= batches_[from_batch].end) {
        from_batch++;
    }
    return {from_batch, piece};
}

fused_pass::extent fused_pass::weights_of(const taken & t) const {
    if (t.batch == batches_.size() || batches_[t.batch].kind != batch::what::multiply) {
        return {nullptr, 0};
    }
    const batch &       b      = batches_[t.batch];
    const ggml_tensor * weight = plan_.stages[(size_t) b.stage].products[(size_t) b.product].weight();
    const int64_t       first  = (t.piece - b.first) * b.per_piece, end = std::min(first + b.per_piece, weight->ne[1]);
    const size_t        expert = (size_t) groups_[(size_t) b.group].expert;
    return {(const char *) weight->data + expert * weight->nb[2] + (size_t) first * weight->nb[1], (end - first) * (int64_t) weight->nb[1]};
}

bool fused_pass::is_done(int batch_index) const {
    const batch & b = batches_[(size_t) batch_index];
    return counters_[(size_t) batch_index].done.load(std::memory_order_acquire) == b.end - b.first;
}

bool fused_pass::is_ready(const batch & b) const {
    int i = b.needs.begin;
    while (i < b.needs.end && is_done(i)) {
        i++;
    }
    return i == b.needs.end;
}

void fused_pass::wait_for(const batch & b) const {
    for (backoff waiting; !is_ready(b);) {
        waiting.pause();
    }
}

void fused_pass::do_piece(const batch & b, int piece, const taken & next) {
    const group_of_rows & g = groups_[(size_t) b.group];
    const int64_t column = b.pieces_of_row > 0 ? piece % b.pieces_of_row * b.per_piece : 0;
    switch (b.kind) {
        case batch::what::convert: {
            const chain_plan::value & v = plan_.values[(size_t) plan_.operands[(size_t) b.product].value];
            const int source = piece / b.pieces_of_row;
            convert(b.product, sources_[(size_t) v.input][(size_t) source], source, column, std::min(b.per_piece, v.width() - column));
        } break;
        case batch::what::finish: {
            const chain_plan::stage & s = plan_.stages[(size_t) b.stage];
            const int row = by_expert_[(size_t) (g.begin + piece / b.pieces_of_row)];
            finish_row(s, row, column, s.by_columns ? std::min(b.per_piece, s.width - column) : 0);
        } break;
        case batch::what::multiply: {
            const chain_plan::product & p = plan_.stages[(size_t) b.stage].products[(size_t) b.product];
            const int64_t first = piece * b.per_piece;
            multiply(p, g, first, std::min(first + b.per_piece, p.weight()->ne[1]), next);
        } break;
    }
}

void fused_pass::convert(int operand, const float * from, int operand_row, int64_t column, int64_t n) {
    const chain_plan::operand & o = plan_.operands[(size_t) operand];
    uint8_t * row = operand_data_[(size_t) operand] + (size_t) operand_row * ggml_row_size(o.type, plan_.values[(size_t) o.value].width());
    o.from_float(from + column, row + ggml_row_size(o.type, column), n);
}

// n columns from `column` on, or whole rows when n is 0.
void fused_pass::finish_row(const chain_plan::stage & s, int row, int64_t column, int64_t n) {
    for (int step : s.steps) {
        const chain_plan::value & v = plan_.values[(size_t) step];
        compute_step(v, row, column, n > 0 ? n : v.width());
    }
    for (int operand : s.operands) {
        const chain_plan::value & v = plan_.values[(size_t) plan_.operands[(size_t) operand].value];
        convert(operand, at(v, row), row, column, n > 0 ? n : v.width());
    }
}

// The node as it is, but of one row, or of a part of it.
void fused_pass::compute_step(const chain_plan::value & v, int row, int64_t column, int64_t n) {
    const auto shape = [](ggml_tensor & t, void * data, int64_t ne0, int64_t ne1) {
        t.data = data;
        t.ne[0] = ne0;
        t.ne[1] = ne1;
        t.ne[2] = t.ne[3] = 1;
        t.nb[0] = ggml_type_size(t.type);
        t.nb[1] = ne1 > 1 ? t.nb[1] : (size_t) ne0 * t.nb[0];
        t.nb[2] = t.nb[3] = t.nb[1] * (size_t) ne1;
    };
    ggml_tensor node = *v.tensor;
    ggml_tensor sources[3];
    shape(node, at(v, row) + column, n, 1);
    for (int i = 0; i < 3 && v.tensor->src[i]; i++) {
        const ggml_tensor * src = v.tensor->src[i];
        ggml_tensor &       one = sources[i];
        one         = *src;
        node.src[i] = &one;
        if (src == block_->ids) {
            shape(one, (void *) &rows_->experts[(size_t) row], 1, 1);
        } else if (i == expert_source(v.tensor)) {  // a bias: one row for each expert
            shape(one, (float *) src->data + column, n, src->ne[1]);
        } else if (src->ne[0] == v.width()) {
            shape(one, at(plan_.values[(size_t) plan_.value_of(src)], row) + column, n, 1);
        } else {                                    // a factor for the row, or whole rows of another width
            shape(one, at(plan_.values[(size_t) plan_.value_of(src)], row), src->ne[0], 1);
        }
    }
    cpu_kernels::call(v.step, &node);
}

void fused_pass::multiply(const chain_plan::product & p, const group_of_rows & g, int64_t first, int64_t end, const taken & next) {
    const ggml_tensor *       weight = p.weight();
    const chain_plan::value & v      = plan_.values[(size_t) p.value];
    const char *              rows   = (const char *) weight->data + (size_t) g.expert * weight->nb[2];
    const int                 width  = (int) weight->ne[0];
    const int                 n      = g.end - g.begin;
    float *      to[rows_for_a_matrix_kernel];
    const void * by[rows_for_a_matrix_kernel];
    for (int i = 0; i < n; i++) {
        const int row = by_expert_[(size_t) (g.begin + i)];
        to[i] = at(v, row);
        by[i] = operand_at(p.operand, row);
    }
    // A row of weights serves all that read it while it is near, one at a time: so does the graph, even where the kernel
    // could take two, and then gives other bits.
    const extent ahead = weights_of(next);
    for (int64_t r = first; r < end; r++) {
        const int64_t done = r - first, all = end - first;
        prefetch(ahead.data + ahead.n * done / all, ahead.data + ahead.n * (done + 1) / all);
        for (int i = 0; i < n; i++) {
            p.dot(width, to[i] + r, 0, rows + (size_t) r * weight->nb[1], 0, by[i], 0, 1);
        }
    }
}

float * fused_pass::at(const chain_plan::value & v, int row) const {
    if (v.input >= 0) {
        return const_cast<float *>(sources_[(size_t) v.input][(size_t) source_of_row_[(size_t) v.input][(size_t) row]]);
    }
    const int64_t pitch = plan_.values[(size_t) v.home].width();
    return value_data_[(size_t) v.home] + row * pitch + (int64_t) v.offset;
}

const void * fused_pass::operand_at(int operand, int row) const {
    const chain_plan::operand & o = plan_.operands[(size_t) operand];
    const chain_plan::value &   v = plan_.values[(size_t) o.value];
    if (!o.from_float) {
        return at(v, row);
    }
    const int operand_row = v.input >= 0 ? source_of_row_[(size_t) v.input][(size_t) row] : row;
    return operand_data_[(size_t) operand] + (size_t) operand_row * ggml_row_size(o.type, v.width());
}

}  // namespace hot
