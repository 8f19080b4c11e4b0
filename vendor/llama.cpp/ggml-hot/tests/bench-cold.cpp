// How fast cold experts are computed: by a graph of the CPU backend, and in one pass. Blocks come one after the other with
// a pause of other work in between, each from another layer's weights, as they do while text is written.
// Usage: bench-cold <folder of ggml's libraries> [--embd 2048] [--ff 768] [--experts 64] [--gate q4_K] [--down q4_K]
//          [--gib 4] [--threads 4,8,12,15,16] [--cold 1,2,4,8] [--pause-us 60] [--seconds 1] [--rounds 3]
//          [--piece-kib 16] [--spin-us 200] [--tokens 1]
#include "cold_layer.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>

struct options {
    std::map<std::string, std::string> values = {{"embd", "2048"},     {"ff", "768"},     {"experts", "64"}, {"gate", "q4_K"},    {"down", "q4_K"},
                                                 {"gib", "4"},         {"threads", "4,8,12,15,16"},          {"cold", "1,2,4,8"}, {"pause-us", "60"},
                                                 {"seconds", "1"},     {"rounds", "3"},   {"piece-kib", "16"}, {"spin-us", "200"}, {"tokens", "1"}};

    options(int argc, char ** argv) {
        for (int i = 2; i < argc; i += 2) {
            const std::string name = argv[i] + std::min<size_t>(2, strlen(argv[i]));
            if (i + 1 == argc || values.count(name) == 0) {
                fprintf(stderr, "no such option, or no value for it: %s\n", argv[i]);
                exit(2);
            }
            values[name] = argv[i + 1];
        }
    }
    double number(const char * name) const { return atof(values.at(name).c_str()); }
    std::vector<int> numbers(const char * name) const {
        std::vector<int> all;
        for (const char * at = values.at(name).c_str(); at; at = strchr(at, ',') ? strchr(at, ',') + 1 : nullptr) all.push_back(atoi(at));
        return all;
    }
    ggml_type type(const char * name) const {
        for (int t = 0; t < GGML_TYPE_COUNT; t++) {
            if (ggml_type_name((ggml_type) t) && values.at(name) == ggml_type_name((ggml_type) t)) return (ggml_type) t;
        }
        fprintf(stderr, "no such type: %s\n", values.at(name).c_str());
        exit(2);
    }
};

static double now_us() {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What the thread does between two blocks: it waits for the GPU, busily.
static void pass_time(double us) {
    for (const double end = now_us() + us; now_us() < end;) {}
}

// All experts hold the same numbers, each in memory of its own.
class layers {
public:
    explicit layers(const options & o) {
        form_.gate = form_.up = o.type("gate");
        form_.down     = o.type("down");
        form_.n_embd   = (int64_t) o.number("embd");
        form_.n_ff     = (int64_t) o.number("ff");
        form_.n_expert = (int) o.number("experts");
        form_.n_used   = 8;
        form_.n_tokens = (int) o.number("tokens");
        const std::function<void(ggml_tensor *)> fill = [&](ggml_tensor * t) { give_data(t); };
        while ((double) bytes_ < o.number("gib") * 1073741824.0) all_.push_back(std::make_unique<cold_layer>(form_, fill));
        printf("%s, %zu layers of %d experts, %.1f GiB\n", form_.text().c_str(), all_.size(), form_.n_expert, (double) bytes_ / 1073741824.0);
    }
    const hot::moe_block & block(size_t i) const { return all_[i % all_.size()]->block; }
    size_t size() const { return all_.size(); }

private:
    void give_data(ggml_tensor * t) {
        std::vector<uint8_t> & expert = one_[{t->type, t->ne[0]}];
        if (expert.empty()) {
            std::normal_distribution<float> normal(0.0f, 0.06f);
            std::vector<float> floats((size_t) (t->ne[0] * t->ne[1])), even((size_t) t->ne[0], 1.0f);
            for (float & v : floats) v = normal(rng_);
            expert.resize(t->nb[2]);
            ggml_quantize_chunk(t->type, floats.data(), expert.data(), 0, t->ne[1], t->ne[0], even.data());
        }
        storage_.emplace_back(new uint8_t[ggml_nbytes(t)]);
        t->data = storage_.back().get();
        for (int64_t e = 0; e < t->ne[2]; e++) memcpy((char *) t->data + (size_t) e * t->nb[2], expert.data(), t->nb[2]);
        bytes_ += ggml_nbytes(t);
    }

    std::minstd_rand rng_;
    cold_form        form_;
    size_t           bytes_ = 0;
    std::map<std::pair<ggml_type, int64_t>, std::vector<uint8_t>> one_;
    std::vector<std::unique_ptr<uint8_t[]>>  storage_;
    std::vector<std::unique_ptr<cold_layer>> all_;
};

struct result {
    std::vector<double> us;
    double bytes = 0, total_us = 0;

    double median() {
        std::nth_element(us.begin(), us.begin() + (ptrdiff_t) us.size() / 2, us.end());
        return us[us.size() / 2];
    }
};

class bench {
public:
    bench(const options & o, const layers & model) : o_(o), model_(model) {
        hot::cold_options graph, fused;
        graph.fused       = false;
        fused.piece_bytes = (size_t) (o.number("piece-kib") * 1024);
        graph.spin = fused.spin = std::chrono::microseconds((int) o.number("spin-us"));
        ways_[0] = graph;
        ways_[1] = fused;
    }

    void row(int threads, int n_cold) {
        result results[2];
        const int rounds = (int) o_.number("rounds");
        for (int round = 0; round < 2 * rounds; round++) {
            const int way = round % 2;
            // threads of the other way must not be there
            hot::cold_path path(ways_[way]);
            const double end = now_us() + 20e3;
            while (now_us() < end) once(path, threads, n_cold, nullptr);
            const double stop = now_us() + o_.number("seconds") * 1e6 / (2 * rounds);
            while (now_us() < stop) once(path, threads, n_cold, &results[way]);
        }
        const double graph = results[0].median(), fused = results[1].median();
        printf("%7d %5d | %9.1f %7.1f %7.1f | %9.1f %7.1f %7.1f | %6.2f\n", threads, n_cold, graph, rate(results[0]), rate_of_all(results[0]), fused,
               rate(results[1]), rate_of_all(results[1]), graph / fused);
        fflush(stdout);
    }

private:
    static double rate(result & r) { return r.bytes / (double) r.us.size() / r.median() / 1e3; }
    static double rate_of_all(const result & r) { return r.bytes / r.total_us / 1e3; }

    void once(hot::cold_path & path, int threads, int n_cold, result * to) {
        const hot::moe_block & block = model_.block(layer_++);
        std::vector<int>     positions;
        std::vector<int32_t> experts;
        for (int t = 0; t < block.n_tokens; t++) {
            for (int i = 0; i < n_cold; i++) {
                positions.push_back(t * (int) block.n_used + i);
                // neighbours in a layer are computed rounds apart
                experts.push_back((int32_t) ((expert_ + (size_t) i) % (size_t) block.n_expert));
            }
        }
        if (layer_ % model_.size() == 0) expert_ += (size_t) n_cold;
        if (x_.empty()) x_.assign((size_t) ggml_nelements(block.inputs[0]), 0.5f);
        for (float & v : x_) v = -v;  // not yet in the workers' caches
        rows_.resize(positions.size() * (size_t) block.out->ne[0]);
        pass_time(o_.number("pause-us"));
        const double begin = now_us();
        hot::cold_work done;
        path.compute(block, threads, {x_.data()}, positions, experts, rows_.data(), &done);
        const double us = now_us() - begin;
        if (to) {
            to->us.push_back(us);
            to->bytes += (double) done.weight_bytes;
            to->total_us += us;
        }
    }

    const options & o_;
    const layers &  model_;
    hot::cold_options  ways_[2];
    std::vector<float> x_, rows_;
    size_t layer_ = 0, expert_ = 0;
};

int main(int argc, char ** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s <folder of ggml's libraries> [options: see the head of this program's source]\n", argv[0]);
        return 2;
    }
    ggml_backend_load_all_from_path(argv[1]);
    const options o(argc, argv);
    const layers  model(o);
    bench         b(o, model);
    printf("%.0f us of other work between blocks; median us of a block, GB/s of weights at the median and over all\n", o.number("pause-us"));
    printf("%7s %5s | %9s %7s %7s | %9s %7s %7s | %6s\n", "threads", "cold", "graph us", "GB/s", "all", "fused us", "GB/s", "all", "faster");
    for (int threads : o.numbers("threads")) {
        for (int n_cold : o.numbers("cold")) b.row(threads, n_cold);
    }
    return 0;
}
