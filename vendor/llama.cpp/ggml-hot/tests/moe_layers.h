// Random MoE layers in all the forms that llama.cpp builds, computed through the real scheduler with the real plug-in,
// and once more by the plain CPU back-end.
#pragma once

#include "check.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

enum class ffn { swiglu, geglu, reglu, swiglu_oai, clamped, situ, relu_squared, silu_ungated };

struct layer_case {
    std::string name;
    ggml_type   type = GGML_TYPE_Q8_0;
    ffn         activation = ffn::swiglu;
    bool merged        = false;  // one gate_up tensor
    bool bias          = false;  // ADD_ID behind every product
    bool scale         = false;  // a factor for each expert behind every product
    bool weight_before = false;  // router weights applied to the input, not to the result
    bool lora          = false;  // a low-rank adapter on every product
    bool shared_expert = false;  // a dense neighbour whose result joins the sum
    std::string on_gpu;          // which of "up", "gate", "down" lie in VRAM, as --fit places the layer at its boundary
    int  n_used        = 8;
    int  n_tokens      = 1;
    int  n_layers      = 2;
};

// threads that spin for one another are slow on a busy machine, and the results do not depend on their number
inline const int n_threads = std::getenv("HOT_TEST_THREADS") ? atoi(std::getenv("HOT_TEST_THREADS")) : 1;
constexpr int n_embd = 256, n_ff = 256, n_expert = 24;

inline std::minstd_rand rng(42);

// of mean 0 and deviation `scale`: a sum of four even ones is near enough to normal, and quick
inline std::vector<float> random_floats(size_t n, float scale) {
    std::vector<float> v(n);
    for (float & f : v) {
        float sum = 0;
        for (int i = 0; i < 4; i++) sum += (float) rng() / (float) std::minstd_rand::max() - 0.5f;
        f = sum * scale * 1.7320508f;
    }
    return v;
}

inline void fill(ggml_tensor * t, float scale) {
    const std::vector<float> v = random_floats(ggml_nelements(t), scale);
    std::vector<uint8_t> bytes(ggml_nbytes(t));
    ggml_quantize_chunk(t->type, v.data(), bytes.data(), 0, ggml_nrows(t), t->ne[0], nullptr);
    ggml_backend_tensor_set(t, bytes.data(), 0, bytes.size());
}

struct devices {
    std::vector<ggml_backend_dev_t> gpus, hots;
    ggml_backend_dev_t cpu;

    static devices find() {
        devices d{};
        for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
            ggml_backend_dev_t dev = ggml_backend_dev_get(i);
            switch (ggml_backend_dev_type(dev)) {
                case GGML_BACKEND_DEVICE_TYPE_GPU:   d.gpus.push_back(dev); break;
                case GGML_BACKEND_DEVICE_TYPE_CPU:   d.cpu = dev; break;
                case GGML_BACKEND_DEVICE_TYPE_ACCEL: if (strncmp(ggml_backend_dev_name(dev), "HOT", 3) == 0) d.hots.push_back(dev); break;
                default: break;
            }
        }
        return d;
    }
};

inline bool missing(ggml_backend_buffer_t buffer) { return !buffer; }
inline bool missing(const std::vector<float> & result) { return result.empty(); }

// Allocations of the test's own may be made to fail, too: it asks again.
template <typename F> auto insist(const F & allocate) {
    auto got = allocate();
    for (int again = 0; missing(got) && again < 3; again++) got = allocate();
    return got;
}

// A product's weight and what may come with it.
struct product {
    ggml_tensor * w = nullptr, * bias = nullptr, * scale = nullptr, * lora_a = nullptr, * lora_b = nullptr;
};

struct layer_weights {
    ggml_tensor * router, * shared = nullptr;
    product up, gate, gate_up, down;
};

struct inputs {
    std::vector<float> x, noise;

    // some experts are hotter than others, so that there is something to cache
    static inputs random(const layer_case & c, int hot_from = 0) {
        inputs in{random_floats((size_t) n_embd * c.n_tokens, 1.0f), random_floats((size_t) n_expert * c.n_tokens, 1.0f)};
        for (size_t i = 0; i < in.noise.size(); i++) in.noise[i] += ((int) i + n_expert - hot_from) % n_expert < 5 ? 1.5f : 0.0f;
        return in;
    }
};

// Layers whose experts lie in host memory and whose routers lie on the GPUs, evenly spread.
class moe_layers {
public:
    moe_layers(const devices & dev, const layer_case & c) : dev_(dev), c_(c), model_(c.n_layers) {
        cpu_.reset(ggml_backend_dev_init(dev.cpu, nullptr));
        for (ggml_backend_dev_t gpu : dev.gpus) gpus_.emplace_back(ggml_backend_dev_init(gpu, nullptr));
        const size_t n_homes = std::max<size_t>(1, gpus_.size());
        ggml_context_ptr host(new_context()), adapters(new_context());
        std::vector<ggml_context_ptr> homes;
        for (size_t i = 0; i < n_homes; i++) homes.emplace_back(new_context());
        for (size_t il = 0; il < model_.size(); il++) {
            ggml_context * home = homes[il * n_homes / model_.size()].get();
            describe(model_[il], host.get(), home, adapters.get());
        }
        keep(host.get(), cpu_.get(), true);
        keep(adapters.get(), cpu_.get(), false);
        for (size_t i = 0; i < n_homes; i++) keep(homes[i].get(), gpus_.empty() ? cpu_.get() : gpus_[i].get(), true);
        contexts_.push_back(std::move(host));
        contexts_.push_back(std::move(adapters));
        for (auto & home : homes) contexts_.push_back(std::move(home));
    }

    void open_device() {
        for (ggml_backend_dev_t hot : dev_.hots) hots_.emplace_back(ggml_backend_dev_init(hot, nullptr));
    }
    void close_device() { hots_.clear(); }

    // llama.cpp says the number of threads before each batch; without, the device finds out by itself where one begins
    bool announce_batches = true;

    // The graph is built anew for each run, as its tensors are changed by the scheduler.
    void set_tokens(int n_tokens) { c_.n_tokens = n_tokens; }  // of the next batches

    std::vector<float> evaluate(const inputs & in, bool with_device, bool node_by_node = false) {
        const std::vector<float> result = insist([&] { return try_to_evaluate(in, with_device, node_by_node); });
        CHECK(!result.empty(), "no memory for the graph");
        return result;
    }

    // new values in the same tensors: what a reload at the same addresses looks like
    void refill() {
        for (auto & ctx : contexts_) {
            for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) fill(t, 0.06f);
        }
    }

private:
    // Empty when VRAM for the graph ran out.
    std::vector<float> try_to_evaluate(const inputs & in, bool with_device, bool node_by_node) {
        ggml_context_ptr ctx(ggml_init({ggml_tensor_overhead() * 1024 + ggml_graph_overhead(), nullptr, true}));
        ggml_cgraph * graph = ggml_new_graph(ctx.get());
        ggml_tensor * x     = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd, c_.n_tokens);
        ggml_tensor * noise = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_expert, c_.n_tokens);
        ggml_set_input(x);
        ggml_set_input(noise);
        ggml_tensor * cur = ggml_scale(ctx.get(), x, 1.0f);
        for (const layer_weights & w : model_) cur = build(ctx.get(), graph, w, cur, noise);
        ggml_set_output(cur);
        ggml_build_forward_expand(graph, cur);

        std::vector<ggml_backend_t> backends;
        for (auto & gpu : gpus_) backends.push_back(gpu.get());
        if (with_device) {
            for (auto & hot : hots_) backends.push_back(hot.get());
        }
        backends.push_back(cpu_.get());
        for (ggml_backend_t backend : backends) {
            ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
            const auto set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
            if (set && (announce_batches || backend == cpu_.get())) set(backend, n_threads);
        }
        ggml_backend_sched_ptr sched(ggml_backend_sched_new(backends.data(), nullptr, (int) backends.size(), 1024, false, false));
        if (node_by_node) {
            ggml_backend_sched_set_eval_callback(sched.get(), [](ggml_tensor *, bool, void *) { return true; }, nullptr);
        }
        if (!ggml_backend_sched_alloc_graph(sched.get(), graph)) {
            return {};
        }
        ggml_backend_tensor_set(x, in.x.data(), 0, ggml_nbytes(x));
        ggml_backend_tensor_set(noise, in.noise.data(), 0, ggml_nbytes(noise));
        CHECK(ggml_backend_sched_graph_compute(sched.get(), graph) == GGML_STATUS_SUCCESS, "compute");
        std::vector<float> result(ggml_nelements(cur));
        ggml_backend_tensor_get(cur, result.data(), 0, ggml_nbytes(cur));
        return result;
    }

    static ggml_context_ptr new_context() { return ggml_context_ptr(ggml_init({ggml_tensor_overhead() * 256, nullptr, true})); }

    void keep(ggml_context * ctx, ggml_backend_t backend, bool weights) {
        if (!ggml_get_first_tensor(ctx)) return;
        buffers_.emplace_back(insist([&] { return ggml_backend_alloc_ctx_tensors(ctx, backend); }));
        if (weights) ggml_backend_buffer_set_usage(buffers_.back().get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) fill(t, 0.06f);
    }

    void describe(layer_weights & w, ggml_context * host, ggml_context * home, ggml_context * adapters) const {
        const int il = (int) (&w - model_.data());
        const auto make = [&](product & p, const char * name, int64_t in, int64_t out) {
            ggml_context * ctx = c_.on_gpu.find(name) != std::string::npos ? home : host;
            p.w = ggml_new_tensor_3d(ctx, c_.type, in, out, n_expert);
            ggml_format_name(p.w, "blk.%d.ffn_%s_exps.weight", il, name);
            if (c_.bias) p.bias = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, out, n_expert);
            if (c_.scale) p.scale = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_expert);
            if (c_.lora) {
                p.lora_a = ggml_new_tensor_3d(adapters, GGML_TYPE_F32, in, 4, n_expert);
                p.lora_b = ggml_new_tensor_3d(adapters, GGML_TYPE_F32, 4, out, n_expert);
            }
        };
        w.router = ggml_new_tensor_2d(home, GGML_TYPE_F32, n_embd, n_expert);
        if (c_.shared_expert) w.shared = ggml_new_tensor_2d(home, GGML_TYPE_F32, n_embd, n_embd);
        if (c_.merged) {
            make(w.gate_up, "gate_up", n_embd, 2 * n_ff);
        } else {
            make(w.up, "up", n_embd, n_ff);
            if (has_gate()) make(w.gate, "gate", n_embd, n_ff);
        }
        make(w.down, "down", n_ff, n_embd);
    }

    bool has_gate() const { return c_.activation != ffn::relu_squared && c_.activation != ffn::silu_ungated; }

    ggml_tensor * multiply(ggml_context * ctx, const product & p, ggml_tensor * in, ggml_tensor * ids) const {
        ggml_tensor * r = ggml_mul_mat_id(ctx, p.w, in, ids);
        if (p.scale) {
            ggml_tensor * s = ggml_repeat_4d(ctx, ggml_reshape_3d(ctx, p.scale, 1, n_expert, 1), 1, n_expert, c_.n_tokens, 1);
            r = ggml_mul(ctx, r, ggml_get_rows(ctx, s, ids));
        }
        if (p.lora_a) {
            ggml_tensor * ab = ggml_mul_mat_id(ctx, p.lora_b, ggml_mul_mat_id(ctx, p.lora_a, in, ids), ids);
            r = ggml_add(ctx, r, ggml_scale(ctx, ab, 0.5f));
        }
        return p.bias ? ggml_add_id(ctx, r, p.bias, ids) : r;
    }

    ggml_tensor * activate(ggml_context * ctx, ggml_tensor * gate, ggml_tensor * up) const {
        switch (c_.activation) {
            case ffn::swiglu:       return ggml_swiglu_split(ctx, gate, up);
            case ffn::geglu:        return ggml_geglu_split(ctx, gate, up);
            case ffn::reglu:        return ggml_reglu_split(ctx, gate, up);
            case ffn::swiglu_oai:   return ggml_swiglu_oai(ctx, gate, up, 1.702f, 7.0f);
            case ffn::clamped:      return ggml_mul(ctx, ggml_clamp(ctx, ggml_silu(ctx, gate), -INFINITY, 1.0f), ggml_clamp(ctx, up, -1.0f, 1.0f));
            case ffn::situ: {
                ggml_tensor * act = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, gate, 0.5f)), 2.0f);
                act = ggml_mul(ctx, act, ggml_sigmoid(ctx, gate));
                return ggml_mul(ctx, act, ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, up, 0.25f)), 4.0f));
            }
            case ffn::relu_squared: return ggml_sqr(ctx, ggml_relu(ctx, up));
            case ffn::silu_ungated: return ggml_silu(ctx, up);
        }
        return nullptr;
    }

    // The graph that llama.cpp builds for the experts of a layer (llama-graph.cpp, build_moe_ffn).
    ggml_tensor * build(ggml_context * ctx, ggml_cgraph * graph, const layer_weights & w, ggml_tensor * x, ggml_tensor * noise) const {
        const int64_t n_tokens = c_.n_tokens, n_used = c_.n_used;
        ggml_tensor * probs = ggml_soft_max(ctx, ggml_add(ctx, ggml_mul_mat(ctx, w.router, x), noise));
        ggml_tensor * ids = ggml_argsort_top_k(ctx, probs, (int) n_used);
        ggml_tensor * weights = ggml_get_rows(ctx, ggml_reshape_3d(ctx, probs, 1, n_expert, n_tokens), ids);
        ggml_build_forward_expand(graph, weights);
        ggml_tensor * cur = ggml_reshape_3d(ctx, x, n_embd, 1, n_tokens);
        if (c_.weight_before) cur = ggml_mul(ctx, ggml_repeat_4d(ctx, cur, n_embd, n_used, n_tokens, 1), weights);
        ggml_tensor * gate = nullptr, * up = nullptr;
        if (c_.merged) {
            ggml_tensor * gu = multiply(ctx, w.gate_up, cur, ids);
            gate = ggml_view_3d(ctx, gu, n_ff, n_used, n_tokens, gu->nb[1], gu->nb[2], 0);
            up   = ggml_view_3d(ctx, gu, n_ff, n_used, n_tokens, gu->nb[1], gu->nb[2], n_ff * gu->nb[0]);
        } else {
            up = multiply(ctx, w.up, cur, ids);
            if (has_gate()) gate = multiply(ctx, w.gate, cur, ids);
        }
        ggml_tensor * experts = multiply(ctx, w.down, activate(ctx, gate, up), ids);
        if (!c_.weight_before) experts = ggml_mul(ctx, experts, weights);
        ggml_build_forward_expand(graph, experts);
        std::vector<ggml_tensor *> rows;
        for (int64_t i = 0; i < n_used; i++) {
            rows.push_back(ggml_view_2d(ctx, experts, n_embd, n_tokens, experts->nb[2], i * experts->nb[1]));
            ggml_build_forward_expand(graph, rows.back());
        }
        ggml_tensor * sum = rows[0];
        for (int64_t i = 1; i < n_used; i++) {
            sum = ggml_add(ctx, sum, rows[i]);
            ggml_build_forward_expand(graph, sum);
        }
        if (n_used == 1) sum = ggml_cont(ctx, sum);
        if (w.shared) sum = ggml_add(ctx, sum, ggml_mul_mat(ctx, w.shared, x));
        return ggml_add(ctx, sum, x);  // the residual
    }

    devices    dev_;
    layer_case c_;
    std::vector<layer_weights>           model_;
    ggml_backend_ptr                     cpu_;
    std::vector<ggml_backend_ptr>        gpus_;
    std::vector<ggml_context_ptr>        contexts_;
    std::vector<ggml_backend_buffer_ptr> buffers_;
    std::vector<ggml_backend_ptr>        hots_;  // last: closed before the weights go
};

inline double nmse(const std::vector<float> & got, const std::vector<float> & expected) {
    double error = 0, power = 0;
    for (size_t i = 0; i < got.size(); i++) {
        error += std::pow((double) got[i] - expected[i], 2);
        power += std::pow((double) expected[i], 2);
    }
    return got.size() == expected.size() && power > 0 && std::isfinite(error) ? error / power : 1.0;
}

// The statistics that the device wrote when its last context closed, or at the last request on its socket.
inline nlohmann::json read_stats() {
    std::ifstream file(std::getenv("GGML_HOT_STATS"));
    return nlohmann::json::parse(file, nullptr, false);
}

// Sets the variables, loads the back-ends and the plug-in. Environment that is already set stays.
inline devices load_plugin(const char * plugin, const char * lib_dir, const std::vector<std::pair<const char *, std::string>> & env) {
    static char stats[] = "/tmp/hot-test-XXXXXX";
    close(mkstemp(stats));
    setenv("GGML_HOT_STATS", stats, 0);
    for (const auto & [name, value] : env) setenv(name, value.c_str(), 0);
    setenv("GGML_BACKEND_PATH", plugin, 1);
    ggml_backend_load_all_from_path(lib_dir);
    return devices::find();
}
