// Decoding while every token rebalances, uploads are slow and out of step with the GPU, and a client changes settings
// all the time: no torn or stale expert is ever read, so every result is exactly the plain CPU's.
// Usage: test-stress <libggml-hot> <folder of ggml's libraries> [tokens]
#include "moe_layers.h"
#include "socket_client.h"

#include <atomic>
#include <thread>

// Sanitizers make each token many times as long; and a client that never stops would leave the tokens no turn.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
static constexpr int usual_tokens = 25, pause_ms = 200;
#else
static constexpr int usual_tokens = 300, pause_ms = 20;
#endif

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s <libggml-hot> <folder of ggml's libraries> [tokens]\n", argv[0]);
        return 2;
    }
    const int n_tokens = argc > 3 ? atoi(argv[3]) : usual_tokens;
    const std::string socket_path = "/tmp/hot-stress-" + std::to_string(getpid());
    // two asynchronous virtual GPUs; a stream step waits up to 0.3 ms, so copies are still under way when tokens go on
    const devices dev = load_plugin(argv[1], argv[2], {{"GGML_HOT_K", "12"}, {"GGML_HOT_INTERVAL", "1"}, {"GGML_HOT_HYSTERESIS", "0"},
                                                       {"GGML_HOT_BYPASS", "4"}, {"GGML_HOT_VGPU_MIB", "64,64"}, {"GGML_HOT_VGPU_ASYNC", "1"},
                                                       {"GGML_HOT_VGPU_DELAY_US", "300"}, {"GGML_HOT_SOCKET", socket_path}});
    CHECK(dev.hots.size() == dev.gpus.size() && dev.gpus.size() == 2, "%zu GPUs, %zu devices of ours", dev.gpus.size(), dev.hots.size());
    if (failures) return verdict("stress");

    layer_case c;
    c.n_layers = 4;
    long hits = 0, evictions = 0;
    for (int n : {1, 3}) {
        c.n_tokens = n;
        moe_layers layers(dev, c);
        layers.open_device();
        std::atomic<bool> done{false};
        std::atomic<int>  errors{0};
        std::thread client([&] {
            const nlohmann::json changes[] = {{{"policy", "lru"}}, {{"k", 10}}, {{"policy", "window"}}, {{"k", 20}}, {{"upload_mib", 1}},
                                              {{"shared_budget", true}}, {{"upload_mib", 64}}, {{"shared_budget", false}}, {{"k", 12}}};
            for (size_t i = 0; !done; i++) {
                nlohmann::json request = changes[i % (sizeof(changes) / sizeof(changes[0]))];
                request["cmd"] = "set";
                const nlohmann::json answer = ask(socket_path, request);
                errors += !answer.is_object() || answer.contains("error");
                std::this_thread::sleep_for(std::chrono::milliseconds(pause_ms));
            }
        });
        for (int i = 0; i < n_tokens; i++) {
            const inputs in = inputs::random(c, i / 3);  // what is hot moves on all the time
            const double error = nmse(layers.evaluate(in, true), layers.evaluate(in, false));
            CHECK(error <= 1e-12, "%d tokens at once, step %d: NMSE %g", n, i, error);
        }
        done = true;
        client.join();
        CHECK(errors == 0, "%d requests were refused", errors.load());
        layers.close_device();  // in the middle of uploads
        const nlohmann::json s = read_stats();
        hits += s.value("hits", 0L);
        evictions += s.value("evictions", 0L);
        printf("%d tokens at once: hits %ld misses %ld uploads %ld evictions %ld, by node %ld\n", n, s.value("hits", 0L), s.value("misses", 0L),
               s.value("uploads", 0L), s.value("evictions", 0L), s.value("fallback_nodes", 0L));
        CHECK(s.value("fallback_nodes", -1L) == 0, "%s", s.dump().c_str());
        CHECK(s.at("devices").size() == 2 && s["devices"][0].value("layers", 0) == 2 && s["devices"][1].value("layers", 0) == 2,
              "each layer's slots belong on the GPU that runs the layer: %s", s["devices"].dump().c_str());
    }
    CHECK(hits > 0 && evictions > n_tokens, "hits %ld evictions %ld", hits, evictions);
    return verdict("stress");
}
