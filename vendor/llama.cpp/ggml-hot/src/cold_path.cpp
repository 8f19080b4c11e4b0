#include "cold_path.h"

#include "chain.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu.h"

#include <cstring>

namespace hot {

// The CPU backend is a plug-in too: its own functions are reached by name.
template <typename F> static F cpu_function(const char * name) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    return (F) ggml_backend_reg_get_proc_address(reg, name);
}

cold_path::cold_path() : cpu_(ggml_backend_dev_init(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), nullptr)) {}

cold_path::~cold_path() {
    cpu_.reset();
    if (pool_) {
        cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free")((ggml_threadpool_t) pool_);
    }
}

void cold_path::set_n_threads(int n) {
    if (n == n_threads_) {
        return;  // llama.cpp says it again for every batch
    }
    n_threads_ = n;
    const auto new_pool    = cpu_function<decltype(&ggml_threadpool_new)>("ggml_threadpool_new");
    const auto free_pool   = cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free");
    const auto set_pool    = cpu_function<decltype(&ggml_backend_cpu_set_threadpool)>("ggml_backend_cpu_set_threadpool");
    const auto set_threads = cpu_function<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads");
    if (new_pool && free_pool && set_pool) {
        ggml_threadpool_params params = ggml_threadpool_params_default(n);
        ggml_threadpool_t pool = new_pool(&params);
        set_pool(cpu_.get(), pool);
        if (pool_) {
            free_pool((ggml_threadpool_t) pool_);
        }
        pool_ = pool;
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

ggml_status cold_path::compute(const moe_block & block, const float * x, const std::vector<int> & positions,
                        const std::vector<int32_t> & experts, float * rows) {
    const int64_t n_rows = (int64_t) positions.size();
    const int64_t n_embd = block.x->ne[0];
    const size_t  n_tensors = block.chain.size() + 2;

    descriptions_.resize(n_tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_tensors, false));
    context_ptr owner(ggml_init({descriptions_.size(), descriptions_.data(), true}));
    ggml_context * ctx = owner.get();

    // one token, one input: all rows share it. Otherwise every row brings a copy of its own.
    const bool shared_x = block.x->ne[1] == 1 && block.n_tokens == 1;
    ggml_tensor * in  = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, n_embd, shared_x ? 1 : n_rows, 1);
    ggml_tensor * ids = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, n_rows, 1);
    std::vector<ggml_tensor *> weights;
    for (const expert_tensor & w : block.weights) {
        weights.push_back(w.tensor);
    }
    ggml_tensor * out = clone_chain(ctx, block, in, ids, weights, n_rows, 1);
    ggml_cgraph * graph = ggml_new_graph_custom(ctx, n_tensors, false);
    ggml_build_forward_expand(graph, out);

    // lay the results out one after the other; the last one goes where the caller wants it
    size_t need = GGML_PAD(ggml_nbytes(in), 64);
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        need += GGML_PAD(ggml_nbytes(t), 64);
    }
    if (data_.size() < need + 64) {
        data_.resize(need + 64);
    }
    used_ = (64 - (uintptr_t) data_.data() % 64) % 64;
    out->data = rows;
    ids->data = (void *) experts.data();
    if (shared_x) {
        in->data = (void *) x;
    } else {
        in->data = next_bytes(ggml_nbytes(in));
        for (int64_t r = 0; r < n_rows; r++) {
            const int64_t token = positions[r] / block.n_used;
            const int64_t row   = block.x->ne[1] == 1 ? token : positions[r];
            memcpy((float *) in->data + r * n_embd, x + row * n_embd, n_embd * sizeof(float));
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

}  // namespace hot
