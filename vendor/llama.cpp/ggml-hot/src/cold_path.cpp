#include "cold_path.h"

#include "chain.h"
#include "fallback.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace hot {

// The CPU backend is a plug-in too: its own functions are reached by name.
template <typename F> static F cpu_function(const char * name) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    return (F) ggml_backend_reg_get_proc_address(reg, name);
}

// llama.cpp's switch for its tests: matrix kernels for single rows, too. The graph obeys it, a pass of our own would not.
static bool matrix_kernels_forced() {
    const char * value = std::getenv("GGML_CPU_TILED_MM_FORCE");
    return value && atoi(value) == 1;
}

cold_path::cold_path(const cold_options & options)
    : fused_(options.fused && !matrix_kernels_forced()), pass_(options.piece_bytes), workers_(options.spin),
      cpu_(ggml_backend_dev_init(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), nullptr)) {}

cold_path::~cold_path() {
    cpu_.reset();
    if (pool_) {
        cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free")((ggml_threadpool_t) pool_);
    }
}

// The pool only ever grows: contexts and phases (-t, -tb) ask for different numbers in turn, and a smaller number of
// threads runs in a larger pool.
size_t cold_path::memory_bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return pass_.memory_bytes() + descriptions_.capacity() + data_.capacity();
}

void cold_path::use_threads(int n) {
    if (n == n_threads_) {
        return;
    }
    n_threads_ = n;
    const auto new_pool    = cpu_function<decltype(&ggml_threadpool_new)>("ggml_threadpool_new");
    const auto free_pool   = cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free");
    const auto set_pool    = cpu_function<decltype(&ggml_backend_cpu_set_threadpool)>("ggml_backend_cpu_set_threadpool");
    const auto set_threads = cpu_function<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads");
    if (n > pool_size_ && new_pool && free_pool && set_pool) {
        ggml_threadpool_params params = ggml_threadpool_params_default(n);
        ggml_threadpool_t pool = new_pool(&params);
        set_pool(cpu_.get(), pool);
        if (pool_) {
            free_pool((ggml_threadpool_t) pool_);
        }
        pool_      = pool;
        pool_size_ = n;
    }
    if (set_threads) {
        set_threads(cpu_.get(), n);
    }
}

void * cold_path::next_bytes(size_t n) {
    void * bytes = data_.data() + used_;
    used_ += GGML_PAD(n, 64);
    return bytes;
}

// Bytes of the weights of all experts that are asked for.
static uint64_t weight_bytes(const moe_block & block, std::vector<int32_t> experts) {
    std::sort(experts.begin(), experts.end());
    const auto n_distinct = std::unique(experts.begin(), experts.end()) - experts.begin();
    uint64_t   bytes      = 0;
    for (const expert_tensor & w : block.weights) {
        bytes += (uint64_t) n_distinct * w.expert_bytes();
    }
    return bytes;
}

ggml_status cold_path::compute(const moe_block & block, int n_threads, const std::vector<const float *> & inputs,
                               const std::vector<int> & positions, const std::vector<int32_t> & experts, float * rows,
                               cold_work * done) {
    std::lock_guard<std::mutex> lock(mutex_);
    const cold_rows cold{inputs, positions, experts, rows};
    const auto      begin  = std::chrono::steady_clock::now();
    const bool      fused  = fused_ && pass_.prepare(block, kernels_, cold, n_threads);
    ggml_status     status = GGML_STATUS_SUCCESS;
    if (fused) {
        workers_.run(n_threads, [this] { pass_.work(); });
    } else {
        status = compute_graph(block, n_threads, cold);
    }
    if (done) {
        const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
        *done = {fused, weight_bytes(block, experts), took.count()};
    }
    return status;
}

ggml_status cold_path::compute_graph(const moe_block & block, int n_threads, const cold_rows & cold) {
    const auto & [inputs, positions, experts, rows] = cold;
    use_threads(n_threads);
    const int64_t n_rows    = (int64_t) positions.size();
    const size_t  n_tensors = block.chain.size() + block.inputs.size() + 1;

    descriptions_.resize(n_tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_tensors, false));
    context_ptr owner(ggml_init({descriptions_.size(), descriptions_.data(), true}));
    ggml_context * ctx = owner.get();

    // one token, one input: all rows share it. Otherwise every row brings a copy of its own.
    const auto shared = [&](const ggml_tensor * input) { return moe_block::per_token(input) && block.n_tokens == 1; };
    std::vector<ggml_tensor *> in, weights;
    for (const ggml_tensor * input : block.inputs) {
        in.push_back(ggml_new_tensor_3d(ctx, GGML_TYPE_F32, input->ne[0], shared(input) ? 1 : n_rows, 1));
    }
    for (const expert_tensor & w : block.weights) {
        weights.push_back(w.tensor);
    }
    ggml_tensor * ids = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, n_rows, 1);
    ggml_tensor * out = clone_chain(ctx, block, in, ids, weights, n_rows, 1);
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, n_tensors, false);
    ggml_build_forward_expand(graph, out);

    // lay the results out one after the other; the last one goes where the caller wants it
    size_t need = 64;
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        need += GGML_PAD(ggml_nbytes(t), 64);
    }
    if (data_.size() < need) {
        data_.resize(need);
    }
    used_ = (64 - (uintptr_t) data_.data() % 64) % 64;
    out->data = rows;
    ids->data = (void *) experts.data();
    for (size_t k = 0; k < in.size(); k++) {
        const ggml_tensor * input = block.inputs[k];
        if (shared(input)) {
            in[k]->data = (void *) inputs[k];
            continue;
        }
        in[k]->data = next_bytes(ggml_nbytes(in[k]));
        const int64_t width = input->ne[0];
        for (int64_t r = 0; r < n_rows; r++) {
            const int64_t row = moe_block::per_token(input) ? positions[r] / block.n_used : positions[r];
            memcpy((float *) in[k]->data + r * width, inputs[k] + row * width, (size_t) width * sizeof(float));
        }
    }
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        if (t->view_src) {
            t->data = (char *) t->view_src->data + t->view_offs;
        } else if (!t->data) {
            t->data = next_bytes(ggml_nbytes(t));
        }
    }
    return ggml_backend_graph_compute(cpu_.get(), graph);
}

ggml_status cold_path::compute_by_node(ggml_cgraph * graph, int n_threads, int & computed) {
    std::lock_guard<std::mutex> lock(mutex_);
    use_threads(n_threads);
    return compute_on_cpu(cpu_.get(), graph, computed);
}

}  // namespace hot
