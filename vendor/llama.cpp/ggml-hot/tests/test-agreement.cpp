// The device against the plain CPU path on random MoE layers, through the real scheduler and the real plug-in.
// With GGML_HOT_STREAM set: large batches, whose experts pass through VRAM, in turn with single tokens.
// Usage: test-agreement <libggml-hot> <folder of ggml's libraries> cpu|vgpu|gpu
#include "moe_layers.h"

#include <chrono>
#include <thread>

// sanitizers make each step several times as long
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
static constexpr int n_steps = 16;
#else
static constexpr int n_steps = 40;
#endif

static layer_case make(const char * name, ggml_type type, const std::function<void(layer_case &)> & change = [](layer_case &) {}) {
    layer_case c;
    c.name = name;
    c.type = type;
    change(c);
    return c;
}

static std::vector<layer_case> cases(bool has_gpu) {
    std::vector<layer_case> all;
    for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_Q8_0, GGML_TYPE_IQ4_XS, GGML_TYPE_MXFP4, GGML_TYPE_F16, GGML_TYPE_BF16}) {
        all.push_back(make("swiglu", type));
    }
    all.push_back(make("geglu", GGML_TYPE_Q6_K, [](layer_case & c) { c.activation = ffn::geglu; }));
    all.push_back(make("reglu", GGML_TYPE_Q8_0, [](layer_case & c) { c.activation = ffn::reglu; }));
    all.push_back(make("swiglu clamped in steps", GGML_TYPE_Q8_0, [](layer_case & c) { c.activation = ffn::clamped; }));
    all.push_back(make("situ", GGML_TYPE_Q8_0, [](layer_case & c) { c.activation = ffn::situ; }));
    all.push_back(make("swiglu-oai, biases", GGML_TYPE_MXFP4, [](layer_case & c) { c.activation = ffn::swiglu_oai; c.bias = true; }));
    all.push_back(make("no gate, relu squared", GGML_TYPE_Q5_K, [](layer_case & c) { c.activation = ffn::relu_squared; }));
    all.push_back(make("no gate, silu", GGML_TYPE_Q4_K, [](layer_case & c) { c.activation = ffn::silu_ungated; }));
    all.push_back(make("merged", GGML_TYPE_Q4_K, [](layer_case & c) { c.merged = true; }));
    all.push_back(make("merged, biases", GGML_TYPE_Q8_0, [](layer_case & c) { c.merged = c.bias = true; }));
    all.push_back(make("biases", GGML_TYPE_Q8_0, [](layer_case & c) { c.bias = true; }));
    all.push_back(make("scales", GGML_TYPE_Q4_K, [](layer_case & c) { c.scale = true; }));
    all.push_back(make("merged, scales", GGML_TYPE_Q8_0, [](layer_case & c) { c.scale = c.merged = true; }));
    all.push_back(make("weights before the experts", GGML_TYPE_Q8_0, [](layer_case & c) { c.weight_before = true; }));
    all.push_back(make("one used expert", GGML_TYPE_Q4_0, [](layer_case & c) { c.n_used = 1; }));
    all.push_back(make("one, weights before", GGML_TYPE_Q8_0, [](layer_case & c) { c.n_used = 1; c.weight_before = true; }));
    all.push_back(make("shared expert", GGML_TYPE_Q8_0, [](layer_case & c) { c.shared_expert = true; }));
    all.push_back(make("adapter", GGML_TYPE_Q8_0, [](layer_case & c) { c.lora = true; }));
    for (int n_tokens : {2, 3, 4, 12}) {
        for (ggml_type type : {GGML_TYPE_Q4_K, GGML_TYPE_F16}) {
            all.push_back(make("several tokens", type, [&](layer_case & c) { c.n_tokens = n_tokens; }));
        }
    }
    all.push_back(make("merged, scales", GGML_TYPE_Q8_0, [](layer_case & c) { c.merged = c.scale = true; c.n_tokens = 4; }));
    all.push_back(make("geglu, biases", GGML_TYPE_Q8_0, [](layer_case & c) { c.activation = ffn::geglu; c.bias = true; c.n_tokens = 3; }));
    all.push_back(make("weights before", GGML_TYPE_Q8_0, [](layer_case & c) { c.weight_before = true; c.n_tokens = 3; }));
    all.push_back(make("adapter", GGML_TYPE_Q8_0, [](layer_case & c) { c.lora = true; c.n_tokens = 2; }));
    if (has_gpu) {
        for (const char * resident : {"down", "up", "gate", "up gate", "up down", "gate down"}) {
            all.push_back(make((std::string("in VRAM: ") + resident).c_str(), GGML_TYPE_Q4_K, [&](layer_case & c) { c.on_gpu = resident; }));
        }
        all.push_back(make("in VRAM: gate_up", GGML_TYPE_Q4_K, [](layer_case & c) { c.merged = true; c.on_gpu = "gate_up"; }));
        all.push_back(make("merged, in VRAM: down", GGML_TYPE_Q4_K, [](layer_case & c) { c.merged = true; c.on_gpu = "down"; }));
        all.push_back(make("in VRAM: down", GGML_TYPE_Q8_0, [](layer_case & c) { c.on_gpu = "down"; c.n_tokens = 3; }));
    }
    return all;
}

static void run_case(const devices & dev, const layer_case & c, double tolerance, bool node_by_node) {
    moe_layers layers(dev, c);
    layers.announce_batches = !node_by_node;
    layers.open_device();
    double worst = 0;
    for (int step = 0; step < n_steps; step++) {
        const inputs in = inputs::random(c);
        worst = std::max(worst, nmse(layers.evaluate(in, true, node_by_node), layers.evaluate(in, false)));
    }
    layers.close_device();
    const std::string name = c.name + " " + ggml_type_name(c.type) + " x" + std::to_string(c.n_tokens) + (node_by_node ? ", watched" : "");
    // from 8 rows of one expert on the CPU has another kernel, and stand-ins for missed rows add some: the last bits may differ
    const int  k         = atoi(std::getenv("GGML_HOT_K"));
    const bool many_rows = c.n_tokens >= 8 || k < c.n_used;
    CHECK(worst <= (many_rows ? std::max(tolerance, 1e-6) : tolerance), "%s: NMSE %g", name.c_str(), worst);

    const nlohmann::json s = read_stats();
    const long hits = s.value("hits", -1L), misses = s.value("misses", -1L), by_node = s.value("fallback_nodes", -1L);
    printf("%-44s NMSE %-9.2g hits %-5ld misses %-5ld uploads %-4ld node by node %ld\n", name.c_str(), worst, hits, misses,
           s.value("uploads", -1L), by_node);
    if (k < c.n_used && (c.n_tokens > 1 || !ggml_is_quantized(c.type))) {
        CHECK(hits == 0 && misses > 0, "%s: matrix kernels must not see one expert twice in a token", name.c_str());
    } else {
        CHECK(hits > 0 && misses > 0 && s.value("uploads", 0L) > 0, "%s: the cache was not used", name.c_str());
        CHECK(!std::getenv("GGML_HOT_FETCH") || s.value("fetched_bytes", 0L) > 0, "%s: nothing was fetched", name.c_str());
    }
    const std::string reasons = s.value("fallback_reasons", nlohmann::json()).dump();
    CHECK(by_node == 0, "%s: %ld nodes went by node: %s", name.c_str(), by_node, reasons.c_str());
    CHECK(s.at("multi").value("blocks", 0L) > 0 || c.n_tokens == 1, "%s: blocks of several tokens are not counted", name.c_str());
}

static void run_streamed_case(const devices & dev, layer_case c, double tolerance) {
    const std::string name = "streamed: " + c.name + " " + ggml_type_name(c.type);
    moe_layers layers(dev, c);
    layers.announce_batches = true;
    layers.open_device();
    double worst = 0;
    for (int step = 0; step < n_steps; step++) {
        // few tokens use few experts, many tokens all of them
        c.n_tokens = step % 3 == 0 ? 16 + step : 1;
        layers.set_tokens(c.n_tokens);
        const inputs in = inputs::random(c);
        worst = std::max(worst, nmse(layers.evaluate(in, true), layers.evaluate(in, false)));
        std::this_thread::sleep_for(std::chrono::milliseconds(2));  // what was uploaded is resident in the next step
    }
    layers.close_device();
    CHECK(worst <= tolerance, "%s: NMSE %g", name.c_str(), worst);
    const nlohmann::json s = read_stats(), stream = s.value("stream", nlohmann::json::object());
    const long blocks = stream.value("blocks", -1L), up = stream.value("uploaded_bytes", -1L), resident = stream.value("resident_bytes", -1L);
    const long by_node = s.value("fallback_nodes", -1L);
    printf("%-44s NMSE %-9.2g blocks %-4ld uploaded %-9ld from slots %-8ld node by node %ld\n", name.c_str(), worst, blocks, up, resident, by_node);
    CHECK(blocks > 0 && up > 0 && resident > 0, "%s: experts were not streamed", name.c_str());
    const nlohmann::json working = s.value("working", nlohmann::json::object());
    CHECK(working.value("vram_bytes", 0L) > 0 && working.value("host_bytes", 0L) > 0, "%s: working memory is not named", name.c_str());
    const std::string reasons = s.value("fallback_reasons", nlohmann::json()).dump();
    CHECK(by_node == 0, "%s: %ld nodes went by node: %s", name.c_str(), by_node, reasons.c_str());
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s <libggml-hot> <folder of ggml's libraries> cpu|vgpu|gpu\n", argv[0]);
        return 2;
    }
    const std::string mode = argv[3];
    if (mode == "vgpu") setenv("GGML_HOT_VGPU_MIB", "256", 0);
    const devices dev = load_plugin(argv[1], argv[2], {{"GGML_HOT_K", "9"}, {"GGML_HOT_INTERVAL", "3"}, {"GGML_HOT_BYPASS", "12"}});
    if (mode == "cpu" && !dev.gpus.empty()) {
        printf("a GPU is there: the device takes it for its cache, so the CPU cannot be tried here\n");
        return 77;  // ctest: skipped
    }
    if (mode == "gpu" && dev.gpus.empty()) {
        printf("no GPU here\n");
        return 77;
    }
    CHECK(!dev.hots.empty() && dev.cpu && (!dev.gpus.empty() || mode == "cpu"), "the plug-in must register its devices");
    if (failures) return verdict("agreement");
    // The same kernels on the same rows give the same bits; a GPU's own kernels agree as far as ggml's own tests ask,
    // and only in one layer: behind it a near-tie in the routing may fall the other way.
    const double tolerance = mode == "gpu" ? 5e-4 : 1e-12;
    for (layer_case c : cases(!dev.gpus.empty())) {
        c.n_layers = mode == "gpu" ? 1 : std::max<int>(2, (int) dev.gpus.size());
        if (!std::getenv("GGML_HOT_STREAM")) {
            run_case(dev, c, tolerance, false);
        } else if (c.n_tokens == 1) {
            c.n_layers = mode == "gpu" ? 1 : 3;  // an odd number: two layers share a place
            run_streamed_case(dev, c, tolerance);
        }
    }
    if (std::getenv("GGML_HOT_STREAM")) {
        remove(std::getenv("GGML_HOT_STATS"));
        return verdict("agreement of streamed batches");
    }
    // an eval callback (llama-imatrix) cuts every block into single nodes
    layer_case watched = make("watched node by node", GGML_TYPE_Q4_K);
    run_case(dev, watched, tolerance, true);
    remove(std::getenv("GGML_HOT_STATS"));
    return verdict("agreement");
}
