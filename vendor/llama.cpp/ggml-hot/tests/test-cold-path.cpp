// The cold path in one pass against the same rows computed by a graph of the CPU backend: equal to the bit.
// Usage: test-cold-path <folder of ggml's libraries> [seed]
#include "cold_layer.h"

#include <algorithm>
#include <cstdlib>

static std::minstd_rand rng;

static int any(int below) { return (int) (rng() % (unsigned) below); }
template <typename T> static T one_of(const std::vector<T> & of) { return of[(size_t) any((int) of.size())]; }
static bool now_and_then() { return any(4) == 0; }

static const std::vector<ggml_type> types = {
    GGML_TYPE_F32,    GGML_TYPE_F16,     GGML_TYPE_BF16,   GGML_TYPE_Q4_0,    GGML_TYPE_Q4_1,  GGML_TYPE_Q5_0,  GGML_TYPE_Q5_1,   GGML_TYPE_Q8_0,
    GGML_TYPE_MXFP4,  GGML_TYPE_Q2_K,    GGML_TYPE_Q3_K,   GGML_TYPE_Q4_K,    GGML_TYPE_Q5_K,  GGML_TYPE_Q6_K,  GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
    GGML_TYPE_IQ3_S,  GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ2_S,  GGML_TYPE_IQ2_XS,  GGML_TYPE_IQ1_S, GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0,  GGML_TYPE_NVFP4,
};

// Quantizing is slow for some types: a few rows, over and over, each expert beginning with another of them.
static void give_data(ggml_tensor * t, std::vector<std::vector<uint8_t>> & storage) {
    constexpr int64_t n_rows = 5;
    std::normal_distribution<float> normal(0.0f, 0.06f);
    std::vector<float> floats((size_t) (n_rows * t->ne[0])), even((size_t) t->ne[0], 1.0f);
    for (float & v : floats) v = normal(rng);
    const size_t row_bytes = t->nb[1];
    std::vector<uint8_t> rows(n_rows * row_bytes);
    ggml_quantize_chunk(t->type, floats.data(), rows.data(), 0, n_rows, t->ne[0], even.data());
    storage.emplace_back(ggml_nbytes(t));
    for (int64_t r = 0; r < ggml_nrows(t); r++) {
        const int64_t from = (r + r / t->ne[1]) % n_rows;
        memcpy(storage.back().data() + (size_t) r * row_bytes, rows.data() + (size_t) from * row_bytes, row_bytes);
    }
    t->data = storage.back().data();
}

struct request {
    std::vector<int>     positions;
    std::vector<int32_t> experts;

    // Some of the rows, with experts that come up several times; from `limit` rows of one expert on the graph takes over.
    static request random(const hot::moe_block & block, int limit) {
        request r;
        const int n_hot = 1 + any((int) block.n_expert);
        for (int p = 0; p < (int) block.n_rows(); p++) {
            if (any(4) == 0 && !(r.positions.empty() && p + 1 == (int) block.n_rows())) continue;
            const int32_t expert = any(n_hot);
            if (std::count(r.experts.begin(), r.experts.end(), expert) + 1 >= limit) continue;
            r.positions.push_back(p);
            r.experts.push_back(expert);
        }
        if (r.positions.empty()) {
            r.positions.push_back(0);
            r.experts.push_back(0);
        }
        return r;
    }
};

struct both_ways {
    hot::cold_path fused{options(true)}, graph{options(false)};

    static hot::cold_options options(bool fused) {
        hot::cold_options o;
        o.fused       = fused;
        o.piece_bytes = 4096;  // small layers, many pieces
        return o;
    }
};

static void try_form(both_ways & paths, const cold_form & form, int n_requests) {
    std::vector<std::vector<uint8_t>> storage;
    const std::function<void(ggml_tensor *)> fill = [&](ggml_tensor * t) { give_data(t, storage); };
    const cold_layer layer(form, fill);
    for (int i = 0; i < n_requests; i++) {
        const cold_input in(layer.block, rng);
        const request    r     = request::random(layer.block, 8);
        const size_t     n     = r.positions.size() * (size_t) layer.block.out->ne[0];
        const int        threads = 1 + any(4);
        std::vector<float> got(n, 1.0f), expected(n, 2.0f);
        hot::cold_work how;
        paths.fused.compute(layer.block, threads, in.inputs, r.positions, r.experts, got.data(), &how);
        paths.graph.compute(layer.block, 1, in.inputs, r.positions, r.experts, expected.data());
        CHECK(how.fused, "%s: went through a graph", form.text().c_str());
        CHECK(memcmp(got.data(), expected.data(), n * sizeof(float)) == 0, "%s: %zu rows, %d threads: other bits", form.text().c_str(),
              r.positions.size(), threads);
        CHECK(how.weight_bytes > 0 && how.us > 0, "the work is counted");
    }
}

static cold_form random_form() {
    cold_form f;
    f.gate = one_of(types);
    f.up   = now_and_then() ? one_of(types) : f.gate;
    f.down = now_and_then() ? one_of(types) : f.gate;
    f.activation = (act) any((int) act::relu_squared + 1);
    f.on_host    = now_and_then() ? (part) (1 + any(3)) : part::whole;
    f.merged  = now_and_then() && f.activation != act::situ;  // ggml scales no views
    f.bias    = now_and_then();
    f.scale   = now_and_then();
    f.per_row = now_and_then();
    f.n_used   = 1 + any(8);
    f.n_tokens = now_and_then() ? 2 + any(6) : 1;
    // a width that its type's blocks allow
    const auto width = [](ggml_type a, ggml_type b) {
        const int64_t block = std::max(ggml_blck_size(a), ggml_blck_size(b));
        return block == 256 ? 256 * (1 + any(4)) : std::max<int64_t>(block, 4) * (1 + any(24));
    };
    f.n_embd = width(f.gate, f.up);
    f.n_ff   = width(f.down, f.down);
    const bool own_gate = !f.merged && f.activation != act::swiglu_one && f.activation != act::silu_ungated && f.activation != act::relu_squared;
    if (f.on_host == part::only_gate && !own_gate) {
        f.on_host = part::whole;
    }
    return f;
}

// Not our business: the CPU backend's matrix kernels do those.
static void many_rows_of_an_expert_go_to_the_graph(both_ways & paths) {
    std::vector<std::vector<uint8_t>> storage;
    const std::function<void(ggml_tensor *)> fill = [&](ggml_tensor * t) { give_data(t, storage); };
    cold_form form;
    form.n_tokens = 2;
    form.n_embd = form.n_ff = 256;
    const cold_layer layer(form, fill);
    const cold_input in(layer.block, rng);
    for (int n : {7, 8}) {
        std::vector<int> positions;
        for (int p = 0; p < n; p++) positions.push_back(p);
        std::vector<float> rows((size_t) (n * form.n_embd)), expected(rows);
        hot::cold_work how;
        paths.fused.compute(layer.block, 2, in.inputs, positions, std::vector<int32_t>((size_t) n, 3), rows.data(), &how);
        paths.graph.compute(layer.block, 1, in.inputs, positions, std::vector<int32_t>((size_t) n, 3), expected.data());
        CHECK(how.fused == (n < 8), "%d rows of an expert: %s", n, how.fused ? "in one pass" : "through a graph");
        CHECK(rows == expected, "%d rows of an expert: other bits", n);
    }
}

int main(int argc, char ** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s <folder of ggml's libraries> [seed]\n", argv[0]);
        return 2;
    }
    ggml_backend_load_all_from_path(argv[1]);
    rng.seed(argc > 2 ? (unsigned) atoi(argv[2]) : 1);
    both_ways paths;
    for (ggml_type type : types) {
        for (int n_tokens : {1, 3}) {
            cold_form form;
            form.gate = form.up = form.down = type;
            form.n_embd   = 512;
            form.n_ff     = 768;
            form.n_tokens = n_tokens;
            try_form(paths, form, 2);
        }
    }
    for (int activation = 0; activation <= (int) act::relu_squared; activation++) {
        cold_form form;
        form.activation = (act) activation;
        form.n_embd     = 256;
        form.gate = form.up = form.down = GGML_TYPE_Q8_0;
        for (int64_t n_ff : {32, 768, 1056}) {
            form.n_ff = n_ff;
            try_form(paths, form, 2);
        }
    }
    for (int i = 0; i < 400; i++) {
        try_form(paths, random_form(), 2);
    }
    many_rows_of_an_expert_go_to_the_graph(paths);
    return verdict("cold path");
}
