// The matrix: a model of every MoE architecture through libllama, with the device and without.
// Usage: test-models <libggml-hot> <folder of ggml's libraries> <make-model> <folder for models>
//                    [--full] [--gpu] [--only REGEX] [--list]
//
// Each row runs in a process of its own: the model on the CPU alone, before the device is loaded; then with it, from
// the same file. Where the cache is the CPU or a virtual GPU, logits and greedy text must be the same. On a real GPU
// (--gpu) they may differ from the CPU's by no more than they do when the whole model lies on that GPU.
#include "agreement.h"
#include "ggml-backend.h"
#include "matrix.h"
#include "model-run.h"
#include "processes.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <stdexcept>

#include <sys/stat.h>
#include <unistd.h>

using json = nlohmann::json;

static constexpr int n_greedy = 200, n_forced = 40;
static const std::string cache_not_used = "the cache was not used";

struct arguments {
    std::string library, lib_dir, make_model, folder, only = ".*";
    bool full = false, gpu = false, list = false;

    std::string base_of(const std::string & arch) const { return folder + "/" + arch + ".gguf"; }
};

static std::string printed(const char * format, double value) {
    char text[32];
    snprintf(text, sizeof(text), format, value);
    return text;
}

// one model, observed

struct observation {
    size_t                   n_vocab = 0;
    std::vector<float>       single, batched;              // teacher-forced logits, token by token and in batches
    std::vector<llama_token> text;                         // greedy
    json                     after_single, after_batched;  // the device's counters, where it was loaded
};

static json read_counters() {
    std::ifstream file(std::getenv("GGML_HOT_STATS"));
    return json::parse(file, nullptr, /* allow_exceptions */ false);
}

static observation observe(const std::string & path, const placement & where) {
    const llama_model_ptr model = load_model(path, where);
    const std::vector<llama_token> forced = random_tokens(model.get(), n_forced, 7), prompt = random_tokens(model.get(), 4, 11);
    observation o;
    {
        const llama_context_ptr ctx = make_context(model.get(), where);
        o.single  = forced_logits(ctx.get(), forced, 1);
        o.text    = greedy_text(ctx.get(), prompt, n_greedy);
        o.n_vocab = o.single.size() / forced.size();
    }
    o.after_single = read_counters();  // written when the last context goes
    {
        const llama_context_ptr ctx = make_context(model.get(), where);
        for (const int n_batch : {3, 8}) {
            const std::vector<float> logits = forced_logits(ctx.get(), forced, n_batch);
            o.batched.insert(o.batched.end(), logits.begin(), logits.end());
        }
    }
    o.after_batched = read_counters();
    return o;
}

// one row

static void set_environment(const row & r) {
    environment all = {{"GGML_HOT_K", "6"}, {"GGML_HOT_INTERVAL", "3"}, {"GGML_HOT_BYPASS", "8"}};
    // From 8 rows of one expert ggml's CPU takes another kernel, so the last bits would depend on how a batch is split.
    all.push_back({"GGML_CPU_TILED_MM", "0"});
    if (r.cache != cache_on::gpu) {
        for (const char * hidden : {"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"}) {
            all.push_back({hidden, "-1"});
        }
    }
    if (r.cache == cache_on::vgpu || r.cache == cache_on::async_vgpu) {
        all.push_back({"GGML_HOT_VGPU_MIB", "256"});
    } else if (r.cache == cache_on::two_vgpus) {
        all.push_back({"GGML_HOT_VGPU_MIB", "256,256"});
    }
    if (r.cache == cache_on::async_vgpu) {
        all.push_back({"GGML_HOT_VGPU_ASYNC", "1"});
        all.push_back({"GGML_HOT_VGPU_DELAY_US", "50"});
    }
    all.insert(all.end(), r.settings.begin(), r.settings.end());
    for (const auto & [key, value] : all) {
        setenv(key.c_str(), value.c_str(), 1);
    }
}

// "" when the counters show that the device was engaged as asked: its settings, hits, misses and uploads, with one token
// and with several, and nothing node by node.
static std::string not_engaged(const row & r, const json & counters, bool several) {
    if (!counters.is_object() || !counters.contains("hits")) {
        return "the device left no counters";
    }
    if (counters["fallback_nodes"] != 0) {
        return "node by node: " + counters["fallback_reasons"].dump();
    }
    if (r.cache == cache_on::two_vgpus && counters["layers"] > 1 && counters["devices"].size() != 2) {
        return "not on the devices asked for: " + counters["devices"].dump();
    }
    for (const auto & [key, value] : r.settings) {
        const char * const names[][2] = {{"GGML_HOT_K", "k"}, {"GGML_HOT_INTERVAL", "interval"}, {"GGML_HOT_POLICY", "policy"}};
        for (const auto & [variable, field] : names) {
            const json & used = counters[field];
            if (key == variable && (used.is_string() ? used.get<std::string>() : used.dump()) != value) {
                return std::string(field) + " is " + used.dump() + ", not " + value;
            }
        }
    }
    const json & counts = several ? counters["multi"] : counters;
    if (counts["hits"] == 0 || counts["misses"] == 0 || counters["uploads"] == 0) {
        return cache_not_used + (several ? " with several tokens: " : ": ") + counters.dump();
    }
    return "";
}

// The device's own lines and warnings explain a failed row; the rest of llama.cpp's log does not.
static void log_important(ggml_log_level level, const char * text, void *) {
    const bool ours = strncmp(text, "ggml_hot", strlen("ggml_hot")) == 0;
    if (ours || level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static void load_backends(const arguments & args) {
    setenv("GGML_NO_BACKTRACE", "1", 1);
    llama_log_set(log_important, nullptr);
    ggml_backend_load_all_from_path(args.lib_dir.c_str());
}

struct comparison {
    observation expected, stock, got;

    double error() const { return std::max(nmse(expected.single, got.single), nmse(expected.batched, got.batched)); }
    double stock_error() const { return std::max(nmse(expected.single, stock.single), nmse(expected.batched, stock.batched)); }
    double divergence(const observation & o) const { return mean(kl_divergence(expected.single, o.single, o.n_vocab)); }
    bool   same_text() const { return expected.text == got.text; }
};

static std::string columns(const row & r, const comparison & c) {
    const double hits = c.got.after_single.value("hits", 0.0), misses = c.got.after_single.value("misses", 0.0);
    std::string text = printed("%7.1e", nmse(c.expected.single, c.got.single)) + " | " + printed("%7.1e", nmse(c.expected.batched, c.got.batched));
    text += c.same_text() ? " | equal" : " | first " + std::to_string(equal_start(c.expected.text, c.got.text));
    text += " | " + printed("%2.0f %%", 100 * hits / std::max(1.0, hits + misses));
    if (r.cache == cache_on::gpu) {
        text += " | " + printed("%7.1e", c.stock_error()) + " | " + printed("%7.1e", c.divergence(c.got)) + " | " + printed("%7.1e", c.divergence(c.stock));
    }
    return text;
}

// What is wrong with a row; "" when nothing is.
static std::string judge(const row & r, const comparison & c) {
    std::string problem = not_engaged(r, c.got.after_single, /* several */ false);
    if (problem.empty() && atoi(std::getenv("GGML_HOT_BYPASS")) >= 8) {
        problem = not_engaged(r, c.got.after_batched, /* several */ true);
    }
    if (!problem.empty()) {
        return problem;
    }
    if (r.cache != cache_on::gpu) {
        return c.error() > 1e-4 ? "the logits differ" : c.same_text() ? "" : "the text differs";
    }
    if (c.divergence(c.got) > std::max(2 * c.divergence(c.stock), 1e-6)) {
        return "further from the CPU than with the whole model on the GPU";
    }
    return c.error() > std::max(2 * c.stock_error(), 1e-4) ? "logits further from the CPU's than with the whole model on the GPU" : "";
}

static outcome run_row(const row & r, const arguments & args) {
    const std::string base = args.base_of(r.arch), mine = base + "." + std::to_string(getpid());
    const std::string stats = mine + ".json", path = mine + ".gguf";
    outcome out;
    out.reason = does_not_fit(base, r.model.type);
    if (!out.reason.empty()) {
        out.verdict = outcome::not_applicable;
        return out;
    }
    if (!has_form(base, r.model.form)) {
        throw std::runtime_error("the base model does not have this form");
    }
    setenv("GGML_HOT_STATS", stats.c_str(), 1);
    set_environment(r);
    load_backends(args);
    ggml_backend_dev_t gpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU);
    if ((gpu != nullptr) != (r.cache == cache_on::gpu)) {
        throw std::runtime_error(gpu ? "a real GPU is there that could not be hidden" : "no GPU here");
    }

    placement plain, all_on_gpu, cached;
    plain.n_threads = all_on_gpu.n_threads = cached.n_threads = r.n_threads;
    all_on_gpu.gpu     = true;
    cached.gpu         = r.cache != cache_on::cpu;
    cached.cpu_experts = true;

    write_variant(base, path, r.model);
    comparison c;
    c.expected = observe(path, plain);
    if (r.cache == cache_on::gpu) {
        c.stock = observe(path, all_on_gpu);
    }
    if (!ggml_backend_load(args.library.c_str())) {
        throw std::runtime_error("the device does not load");
    }
    // Experts are uploaded beside the computation. Where other programs have all cores, they can come too late for every
    // lookup of so short a run, so a cache that was not hit gets two more chances; what is computed must be right in each.
    for (int attempt = 0; attempt < 3; attempt++) {
        c.got      = observe(path, cached);
        out.reason = judge(r, c);
        if (out.reason.rfind(cache_not_used, 0) != 0) {
            break;
        }
    }
    remove(path.c_str());
    remove(stats.c_str());
    out.columns = columns(r, c);
    out.verdict = out.reason.empty() ? outcome::passed : outcome::failed;
    return out;
}

// base models

static bool newer(const std::string & path, const std::string & than) {
    struct stat a, b;
    return stat(path.c_str(), &a) == 0 && stat(than.c_str(), &b) == 0 && a.st_mtime >= b.st_mtime;
}

// Makes the base model where it is missing. Then the control: would a wrong choice of experts be seen at all? With one
// expert more or less, the logits must change by far more than a row may differ.
static outcome prepare(const std::string & arch, const arguments & args) {
    outcome out;
    const std::string base = args.base_of(arch), path = base + "." + std::to_string(getpid()) + ".gguf";
    if (!newer(base, args.make_model)) {
        std::string output;
        const int status = run_program({args.make_model, args.lib_dir, arch, base}, output);
        if (status != 0) {
            out.verdict = status == 77 ? outcome::not_applicable : outcome::failed;
            out.reason  = status == 77 ? "no experts in its tensors" : "no model could be made: " + output;
            return out;
        }
    }
    setenv("CUDA_VISIBLE_DEVICES", "-1", 1);
    load_backends(args);
    std::map<int, std::vector<float>> logits;
    for (const int used : {2, 3}) {
        variant v;
        v.used = used;
        write_variant(base, path, v);
        const llama_model_ptr   model = load_model(path, {});
        const llama_context_ptr ctx   = make_context(model.get(), {});
        logits[used] = forced_logits(ctx.get(), random_tokens(model.get(), 20, 7), 1);
    }
    remove(path.c_str());
    const double difference = nmse(logits[2], logits[3]);
    out.verdict = difference == 0 ? outcome::not_applicable : difference < 1e-3 ? outcome::failed : outcome::passed;
    out.reason  = difference == 0 ? "no experts in its graph" : "its experts hardly matter: " + printed("%g", difference);
    return out;
}

static std::vector<std::string> architectures(const arguments & args) {
    std::string text;
    run_program({args.make_model, "--list"}, text);
    std::istringstream words(text);
    std::vector<std::string> names;
    for (std::string name; words >> name;) {
        names.push_back(name);
    }
    return names;
}

// the whole

static arguments parse(int argc, char ** argv) {
    arguments args;
    std::vector<std::string> paths;
    for (int i = 1; i < argc; i++) {
        const std::string argument = argv[i];
        if (argument == "--full") {
            args.full = true;
        } else if (argument == "--gpu") {
            args.gpu = true;
        } else if (argument == "--list") {
            args.list = true;
        } else if (argument == "--only" && i + 1 < argc) {
            args.only = argv[++i];
        } else {
            paths.push_back(argument);
        }
    }
    if (paths.size() != 4) {
        fprintf(stderr, "usage: %s <libggml-hot> <folder of ggml's libraries> <make-model> <folder for models> "
                        "[--full] [--gpu] [--only REGEX] [--list]\n", argv[0]);
        exit(2);
    }
    args.library    = paths[0];
    args.lib_dir    = paths[1];
    args.make_model = paths[2];
    args.folder     = paths[3];
    return args;
}

int main(int argc, char ** argv) {
    const arguments args = parse(argc, argv);
    mkdir(args.folder.c_str(), 0755);
    const auto start = std::chrono::steady_clock::now();
    const std::vector<std::string> archs = architectures(args);
    const std::regex only(args.only);
    std::vector<row> rows;
    for (const row & r : matrix(archs, args.full, args.gpu)) {
        if (std::regex_search(r.name(), only)) {
            rows.push_back(r);
        }
    }
    if (args.list) {
        for (const row & r : rows) {
            printf("%s\n", r.name().c_str());
        }
        return 0;
    }

    int n[3] = {0, 0, 0};
    const auto drop = [&](const std::string & arch) {
        rows.erase(std::remove_if(rows.begin(), rows.end(), [&](const row & r) { return r.arch == arch; }), rows.end());
    };
    std::vector<std::string> wanted;
    std::copy_if(archs.begin(), archs.end(), std::back_inserter(wanted), [&](const std::string & arch) {
        return std::any_of(rows.begin(), rows.end(), [&](const row & r) { return r.arch == arch; });
    });
    in_processes(wanted.size(), [&](size_t i) { return prepare(wanted[i], args); }, [&](size_t i, const outcome & out) {
        if (out.verdict != outcome::passed) {
            n[outcome::failed] += out.verdict == outcome::failed;
            printf("%s %s: %s\n", out.verdict == outcome::failed ? "FAILED" : "left out:", wanted[i].c_str(), out.reason.c_str());
            drop(wanted[i]);
        }
    });

    printf("| architecture | experts | type | cache | NMSE | in batches | greedy text | hits |%s\n|---|---|---|---|---|---|---|---|%s\n",
           args.gpu ? " NMSE, all on GPU | KLD | KLD, all on GPU |" : "", args.gpu ? "---|---|---|" : "");
    in_processes(rows.size(), [&](size_t i) { return run_row(rows[i], args); }, [&](size_t i, const outcome & out) {
        n[out.verdict]++;
        const std::string numbers = out.verdict == outcome::not_applicable ? "n/a: " + out.reason : out.columns;
        const std::string remark = out.verdict == outcome::failed ? " FAILED: " + out.reason : "";
        printf("| %s | %s |%s\n", rows[i].name().c_str(), numbers.c_str(), remark.c_str());
    });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    printf("%d not applicable, %.0f s\n%d passed, %d failed\n", n[outcome::not_applicable], seconds, n[outcome::passed], n[outcome::failed]);
    return n[outcome::failed] > 0 || n[outcome::passed] == 0 ? 1 : 0;
}
