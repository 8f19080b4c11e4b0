// The device while things change around it: contexts and models that come and go, VRAM that is taken back, allocations
// that fail, settings that change, profiles. In all of it the results stay those of the plain CPU path.
// Usage: test-lifetime <libggml-hot> <folder of ggml's libraries>
#include "moe_layers.h"
#include "socket_client.h"

#include <sys/wait.h>

static devices     dev;
static std::string folder, socket_path;

static layer_case plain() {
    layer_case c;
    c.name     = "plain";
    c.n_layers = std::max<int>(2, (int) dev.gpus.size());
    return c;
}

static void decode(moe_layers & layers, int steps, const char * when, int hot_from = 0) {
    for (int i = 0; i < steps; i++) {
        const inputs in = inputs::random(plain(), hot_from);
        const double error = nmse(layers.evaluate(in, true), layers.evaluate(in, false));
        CHECK(error <= 1e-12, "%s, step %d: NMSE %g", when, i, error);
    }
}

static nlohmann::json stats() { return ask(socket_path, {{"cmd", "stats"}}); }

static void a_reloaded_model_is_never_answered_from_old_copies() {
    layer_case c = plain();
    moe_layers draft(dev, c), model(dev, c);
    draft.open_device();  // keeps the cache alive all the while
    decode(draft, 10, "draft");
    model.open_device();
    decode(model, 10, "model");
    const long all = stats().value("cache_bytes", 0L);
    model.close_device();
    CHECK(stats().value("cache_bytes", 0L) == all / 2, "the slots of a model that is gone must be given back");
    model.refill();
    model.open_device();
    decode(model, 10, "the same addresses with other weights");
    decode(draft, 2, "draft beside it");
}

static void two_contexts_of_one_model_share_its_slots() {
    moe_layers model(dev, plain());
    model.open_device();
    decode(model, 8, "one context");
    const long bytes = stats().value("cache_bytes", 0L);
    model.open_device();  // a second set of back-ends beside the first
    decode(model, 4, "two contexts");
    CHECK(bytes > 0 && stats().value("cache_bytes", 0L) == bytes, "no second copy");
}

static void slots_follow_the_settings_while_it_runs() {
    moe_layers layers(dev, plain());
    layers.open_device();
    decode(layers, 10, "as started");
    CHECK(stats().value("slots", 0) == 9, "slots %d", stats().value("slots", 0));
    const auto used = [] { return stats().at("vgpu").value("used_bytes", 0L); };
    const long before = used();
    for (int k : {3, 16, 0, n_expert, 9}) {
        const nlohmann::json s = ask(socket_path, {{"cmd", "set"}, {"k", k}});
        CHECK(s.value("slots", -1) == k, "asked for %d, got %s", k, s.dump().substr(0, 300).c_str());
        decode(layers, 6, "after a change of k");
    }
    CHECK(used() == before, "what was taken must be given back");
    // fewer slots while uploads for more of them still wait
    ask(socket_path, {{"cmd", "set"}, {"upload_mib", 1}, {"policy", "lru"}});
    for (int k : {20, 3, 24, 5}) {
        ask(socket_path, {{"cmd", "set"}, {"k", k}});
        decode(layers, 2, "in the middle of filling");
    }
    ask(socket_path, {{"cmd", "set"}, {"upload_mib", 128}, {"policy", "window"}, {"k", 9}});
    const long budget = ask(socket_path, {{"cmd", "set"}, {"mib", 2}}).value("cache_bytes", 0L);
    CHECK(budget > 1L << 20 && budget <= (long) dev.gpus.size() * (2L << 20), "2 MiB of slots a GPU, took %ld bytes", budget);
    decode(layers, 6, "with a budget");
    CHECK(ask(socket_path, {{"cmd", "set"}, {"shared_budget", true}}).value("cache_bytes", 0L) <= (long) dev.gpus.size() * (2L << 20), "shared");
    decode(layers, 60, "with a shared budget");
    ask(socket_path, {{"cmd", "set"}, {"shared_budget", false}, {"k", 9}});
}

static void interval_and_policy_change_what_is_uploaded() {
    moe_layers layers(dev, plain());
    layers.open_device();
    const auto uploads_of = [&](const nlohmann::json & change) {
        nlohmann::json request = change;
        request["cmd"] = "set";
        CHECK(!ask(socket_path, request).contains("error"), "%s", change.dump().c_str());
        decode(layers, 30, "settling");
        ask(socket_path, {{"cmd", "reset"}});
        CHECK(stats().value("hits", -1L) == 0, "reset");
        decode(layers, 40, change.dump().c_str());
        return stats().value("uploads", -1L);
    };
    const long often = uploads_of({{"interval", 1}, {"hysteresis", 0}});
    const long never = uploads_of({{"interval", 1000000}});
    const long lru   = uploads_of({{"policy", "lru"}});
    const long fixed = uploads_of({{"policy", "static"}});
    CHECK(never == 0 && fixed == 0, "uploads with an endless window: %ld, static: %ld", never, fixed);
    CHECK(often > 0 && lru > 0, "uploads at every token: %ld, LRU: %ld", often, lru);
    ask(socket_path, {{"cmd", "set"}, {"policy", "window"}, {"interval", 3}, {"hysteresis", 1}});
}

static void a_profile_seeds_the_next_start() {
    const std::string file = folder + "/profile.json";
    layer_case c = plain();
    moe_layers layers(dev, c);
    layers.open_device();
    decode(layers, 60, "learning", 11);
    CHECK(ask(socket_path, {{"cmd", "save_profile"}, {"path", file}}).value("ok", false), "save");
    layers.close_device();
    // GGML_HOT_PROFILE is read when the first context opens: this process has it from its parent
    const nlohmann::json saved = nlohmann::json::parse(std::ifstream(file), nullptr, false);
    CHECK(saved.value("version", 0) == 1 && saved.at("layers").size() == (size_t) c.n_layers, "%s", saved.dump().substr(0, 200).c_str());
    long hot = 0, all = 0;
    for (const auto & layer : saved.at("layers")) {
        for (int e = 0; e < n_expert; e++) {
            all += layer[e].get<long>();
            hot += e >= 11 && e < 16 ? layer[e].get<long>() : 0;
        }
    }
    CHECK(all == 60L * 8 * c.n_layers && hot * 3 > all, "experts 11 to 15 were the hot ones: %ld of %ld", hot, all);
}

static void routing_can_be_traced() {
    const std::string file = folder + "/routing.trace";
    moe_layers layers(dev, plain());
    layers.open_device();
    decode(layers, 3, "before");
    CHECK(ask(socket_path, {{"cmd", "start_trace"}, {"path", file}, {"weights", true}}).value("ok", false), "start");
    decode(layers, 5, "traced");
    const nlohmann::json traced = stats().at("trace");
    CHECK(traced.value("on", false) && traced.value("tokens", 0) == 5, "%s", traced.dump().c_str());
    CHECK(ask(socket_path, {{"cmd", "stop_trace"}}).value("ok", false), "stop");
    std::ifstream in(file, std::ios::binary | std::ios::ate);
    CHECK((long) in.tellg() > 5L * plain().n_layers * 8 * 3, "%ld bytes", (long) in.tellg());
}

static void the_last_statistics_tell_of_the_slots_that_were_there() {
    moe_layers layers(dev, plain());
    layers.open_device();
    decode(layers, 6, "before the end");
    const nlohmann::json live = stats();
    layers.close_device();
    const nlohmann::json last = read_stats();
    for (const char * key : {"slots", "cache_bytes", "hits", "layers"}) {
        CHECK(last.at(key) == live.at(key) && last.at(key) != 0, "%s: %s, at the end %s", key, live.at(key).dump().c_str(), last.at(key).dump().c_str());
    }
}

static void more_slots_than_vram_become_fewer() {
    moe_layers layers(dev, plain());
    layers.open_device();
    decode(layers, 4, "before");
    const nlohmann::json s = ask(socket_path, {{"cmd", "set"}, {"mib", 100000}});
    CHECK(s.value("slots", 0) == n_expert, "all fit: %d", s.value("slots", 0));
    decode(layers, 10, "all resident");
    ask(socket_path, {{"cmd", "set"}, {"k", 9}});
}

// In a process of its own each, because the library reads its environment once.
static int run_again(const char * self, char ** argv, const char * what, const std::vector<std::pair<const char *, std::string>> & env) {
    const pid_t child = fork();
    if (child == 0) {
        for (const auto & [name, value] : env) setenv(name, value.c_str(), 1);
        execl(self, self, argv[1], argv[2], what, (char *) nullptr);
        _exit(127);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}

// The child's part: decode, and say how many hits the first tokens had.
static void child_decodes(int steps) {
    layer_case c = plain();
    moe_layers layers(dev, c);
    layers.open_device();
    decode(layers, steps, "child", 11);
    layers.close_device();
}

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s <libggml-hot> <folder of ggml's libraries>\n", argv[0]);
        return 2;
    }
    char name[] = "/tmp/hot-lifetime-XXXXXX";
    folder = mkdtemp(name);
    socket_path = folder + "/socket";
    dev = load_plugin(argv[1], argv[2], {{"GGML_HOT_K", "9"}, {"GGML_HOT_INTERVAL", "3"}, {"GGML_HOT_VGPU_MIB", "64"},
                                         {"GGML_HOT_SOCKET", socket_path}, {"GGML_HOT_STATS", folder + "/stats"}});
    CHECK(!dev.hots.empty() && !dev.gpus.empty(), "the plug-in must register its devices");
    if (failures) return verdict("lifetime");
    if (argc > 3) {
        child_decodes(atoi(argv[3]));
        if (std::getenv("EXPECT_HITS")) {
            const nlohmann::json s = read_stats();
            CHECK(s.value("hits", 0L) >= atol(std::getenv("EXPECT_HITS")), "hits %ld", s.value("hits", 0L));
        }
        return verdict("child");
    }
    a_reloaded_model_is_never_answered_from_old_copies();
    two_contexts_of_one_model_share_its_slots();
    slots_follow_the_settings_while_it_runs();
    interval_and_policy_change_what_is_uploaded();
    a_profile_seeds_the_next_start();
    routing_can_be_traced();
    the_last_statistics_tell_of_the_slots_that_were_there();
    more_slots_than_vram_become_fewer();
    CHECK(access(socket_path.c_str(), F_OK) != 0, "the socket must go with the last context");

    // a frozen cache: every token after the first two (which show the layers) is answered as the profile says
    const std::string layers = std::to_string(plain().n_layers);
    CHECK(run_again(argv[0], argv, "6", {{"GGML_HOT_POLICY", "static"}, {"GGML_HOT_PROFILE", folder + "/profile.json"},
                                         {"EXPECT_HITS", layers}, {"GGML_HOT_SOCKET", ""}}) == 0, "static from a profile");
    for (int n = 3; n < 14; n++) {
        CHECK(run_again(argv[0], argv, "12", {{"GGML_HOT_VGPU_FAIL_ALLOC", std::to_string(n)}, {"GGML_HOT_SOCKET", ""}}) == 0,
              "every %d. allocation fails", n);
    }
    CHECK(run_again(argv[0], argv, "12", {{"GGML_HOT_VGPU_MIB", "2"}, {"GGML_HOT_SOCKET", ""}}) == 0, "hardly any VRAM");
    CHECK(run_again(argv[0], argv, "12", {{"GGML_HOT_UPLOAD_MIB", "1"}, {"GGML_HOT_SOCKET", ""}}) == 0, "a small upload budget");
    system(("rm -r " + folder).c_str());
    return verdict("lifetime");
}
