// One layer's experts in host memory, and the block that the device finds in its graph: for the cold path by itself.
#pragma once

#include "../src/cold_path.h"
#include "check.h"
#include "ggml-cpp.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

enum class act { swiglu, geglu, reglu, geglu_erf, geglu_quick, swiglu_oai, swiglu_one, clamped, situ, silu_ungated, relu_squared };
enum class part { whole, no_down, only_down, only_gate };  // what lies on the host

struct cold_form {
    ggml_type gate = GGML_TYPE_Q4_K, up = GGML_TYPE_Q4_K, down = GGML_TYPE_Q4_K;
    int64_t   n_embd = 2048, n_ff = 768;
    int       n_expert = 16, n_used = 8, n_tokens = 1;
    act       activation = act::swiglu;
    part      on_host    = part::whole;
    bool merged  = false;  // one gate_up tensor, of gate's type
    bool bias    = false;  // behind every product
    bool scale   = false;  // a factor for each row behind every product
    bool per_row = false;  // the input differs between the experts of a token

    std::string text() const {
        std::string s = std::string(ggml_type_name(gate)) + '/' + ggml_type_name(up) + '/' + ggml_type_name(down) + " n_embd " +
                        std::to_string(n_embd) + " n_ff " + std::to_string(n_ff) + " used " + std::to_string(n_used) + " tokens " +
                        std::to_string(n_tokens) + " act " + std::to_string((int) activation) + " part " + std::to_string((int) on_host);
        return s + (merged ? " merged" : "") + (bias ? " bias" : "") + (scale ? " scale" : "") + (per_row ? " per row" : "");
    }
};

class cold_layer {
public:
    // fill(tensor): gives an expert tensor its data.
    cold_layer(const cold_form & form, const std::function<void(ggml_tensor *)> & fill) : f_(form), fill_(fill) {
        ctx_.reset(ggml_init({ggml_tensor_overhead() * 128 + ggml_graph_overhead(), nullptr, true}));
        ids_ = ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_I32, f_.n_used, f_.n_tokens);
        ggml_cgraph * graph = ggml_new_graph(ctx_.get());
        ggml_build_forward_expand(graph, build());
        for (int i = 0; i < graph->n_nodes; i++) graph->nodes[i]->flags |= GGML_TENSOR_FLAG_COMPUTE;
        const int         begin   = hot::find_product(graph, 0);
        const std::string problem = hot::find_moe_block(graph, begin, block);
        CHECK(problem.empty(), "%s: %s", f_.text().c_str(), problem.c_str());
    }

    hot::moe_block block;

private:
    ggml_tensor * external(int64_t width, bool per_row) {
        return ggml_new_tensor_3d(ctx_.get(), GGML_TYPE_F32, width, per_row ? f_.n_used : 1, f_.n_tokens);
    }

    ggml_tensor * multiply(ggml_type type, int64_t in, int64_t out, ggml_tensor * x) {
        ggml_tensor * w = ggml_new_tensor_3d(ctx_.get(), type, in, out, f_.n_expert);
        fill_(w);
        ggml_tensor * r = ggml_mul_mat_id(ctx_.get(), w, x, ids_);
        if (f_.scale) r = ggml_mul(ctx_.get(), r, external(1, true));
        if (!f_.bias) return r;
        ggml_tensor * b = ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_F32, out, f_.n_expert);
        fill_(b);
        return ggml_add_id(ctx_.get(), r, b, ids_);
    }

    ggml_tensor * build() {
        ggml_tensor * x = external(f_.n_embd, f_.per_row);
        if (f_.on_host == part::only_down) return multiply(f_.down, f_.n_ff, f_.n_embd, external(f_.n_ff, true));
        ggml_tensor * gate = nullptr, * up = nullptr, * both = nullptr;
        const bool gated = f_.activation != act::silu_ungated && f_.activation != act::relu_squared;
        if (f_.merged || f_.activation == act::swiglu_one) {
            both = multiply(f_.gate, f_.n_embd, 2 * f_.n_ff, x);
            gate = ggml_view_3d(ctx_.get(), both, f_.n_ff, f_.n_used, f_.n_tokens, both->nb[1], both->nb[2], 0);
            up   = ggml_view_3d(ctx_.get(), both, f_.n_ff, f_.n_used, f_.n_tokens, both->nb[1], both->nb[2], (size_t) f_.n_ff * both->nb[0]);
        } else {
            up = f_.on_host == part::only_gate ? external(f_.n_ff, true) : multiply(f_.up, f_.n_embd, f_.n_ff, x);
            if (gated) gate = multiply(f_.gate, f_.n_embd, f_.n_ff, x);
        }
        ggml_tensor * a = activate(gate, up, both);
        return f_.on_host == part::no_down ? a : multiply(f_.down, f_.n_ff, f_.n_embd, a);
    }

    ggml_tensor * activate(ggml_tensor * gate, ggml_tensor * up, ggml_tensor * both) {
        ggml_context * ctx = ctx_.get();
        switch (f_.activation) {
            case act::swiglu:       return ggml_swiglu_split(ctx, gate, up);
            case act::geglu:        return ggml_geglu_split(ctx, gate, up);
            case act::reglu:        return ggml_reglu_split(ctx, gate, up);
            case act::geglu_erf:    return ggml_geglu_erf_split(ctx, gate, up);
            case act::geglu_quick:  return ggml_geglu_quick_split(ctx, gate, up);
            case act::swiglu_oai:   return ggml_swiglu_oai(ctx, gate, up, 1.702f, 7.0f);
            case act::swiglu_one:   return ggml_swiglu(ctx, both);
            case act::clamped:      return ggml_mul(ctx, ggml_clamp(ctx, ggml_silu(ctx, gate), -INFINITY, 1.0f), ggml_clamp(ctx, up, -1.0f, 1.0f));
            case act::situ: {
                ggml_tensor * a = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, gate, 0.5f)), 2.0f);
                return ggml_mul(ctx, ggml_mul(ctx, a, ggml_sigmoid(ctx, gate)), up);
            }
            case act::silu_ungated: return ggml_silu(ctx, up);
            case act::relu_squared: return ggml_sqr(ctx, ggml_relu(ctx, up));
        }
        return nullptr;
    }

    cold_form f_;
    const std::function<void(ggml_tensor *)> & fill_;
    ggml_context_ptr ctx_;
    ggml_tensor *    ids_;
};

// What comes from outside of a block, at random.
struct cold_input {
    std::vector<std::vector<float>> data;
    std::vector<const float *>      inputs;

    cold_input(const hot::moe_block & block, std::minstd_rand & rng) {
        std::normal_distribution<float> normal;
        for (const ggml_tensor * t : block.inputs) {
            data.emplace_back((size_t) ggml_nelements(t));
            for (float & v : data.back()) v = normal(rng);
        }
        for (const auto & d : data) inputs.push_back(d.data());
    }
};
