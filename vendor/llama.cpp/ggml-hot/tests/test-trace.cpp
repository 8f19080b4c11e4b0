// The routing trace: its exact bytes, what a reader gets back, and what survives when something goes wrong.
//
//   test-trace          the tests
//   test-trace <file>   writes the sample trace there (tests/unit/routing/sample.hottrace)
#include "../src/trace.h"
#include "check.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <fstream>
#include <iterator>
#include <string>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

static std::string folder;  // of this run, removed at its end

static std::string read_file(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

static void write_file(const std::string & path, const std::string & text) {
    std::ofstream(path, std::ios::binary) << text;
}

static bool holds(const std::string & text, const std::string & part) {
    return text.find(part) != std::string::npos;
}

//
// the sample: two layers, one with ids of three bits and one of nine; three tokens of a prompt, of which the last layer
// computes one; then a token with two experts, and one with one
//

static std::string write_sample(const std::string & path) {
    hot::trace_writer trace;
    const std::string error = trace.start(path, true);
    if (!error.empty()) {
        return error;
    }
    const int32_t prompt0[] = {5, 0, 1, 7, 5, 2}, prompt1[] = {299, 4};
    const int32_t second0[] = {7, 5}, second1[] = {4, 256}, third0[] = {3}, third1[] = {255};
    const float   prompt0_weights[] = {0.75f, 0.25f, 0.5f, 0.5f, 0.875f, 0.125f}, half[] = {0.5f, 0.5f}, one[] = {1.0f};
    const char *  name0 = "blk.0.ffn_up_exps.weight", * name1 = "blk.1.ffn_up_exps.weight";
    trace.block(0, name0, 8, 3, 2, prompt0, prompt0_weights);
    trace.block(1, name1, 300, 1, 2, prompt1, half);
    trace.block(0, name0, 8, 1, 2, second0, half);
    trace.block(1, name1, 300, 1, 2, second1, nullptr);
    trace.block(0, name0, 8, 1, 1, third0, one);
    trace.block(1, name1, 300, 1, 1, third1, one);
    return trace.stop();
}

// In hexadecimal; docs/trace-format.md explains it byte by byte.
static const char * const sample_hex =
    "484f545452414345020001004c000818626c6b2e302e66666e5f75705f657870"
    "732e77656967687442000302455e01003a003400380038003b00304c01ac0218"
    "626c6b2e312e66666e5f75705f657870732e776569676874420101022b090000"
    "380038420001022f003800384e040002007e007e4200010103003c4eff00003c"
    "4505";

static std::string from_hex(const std::string & hex) {
    std::string bytes;
    for (size_t i = 0; i + 1 < hex.size(); i += 2) {
        bytes += (char) std::stoi(hex.substr(i, 2), nullptr, 16);
    }
    return bytes;
}

static void the_sample_has_exactly_the_documented_bytes() {
    const std::string path  = folder + "/sample";
    const std::string error = write_sample(path);
    CHECK(error.empty(), "%s", error.c_str());
    CHECK(read_file(path) == from_hex(sample_hex), "another format needs another version: see docs/trace-format.md");
}

//
// reading back: as little of a reader as the tests need
//

struct record {
    char                  tag = 0;
    uint64_t              layer = 0, n_expert = 0, n_tokens = 0, n_used = 0;
    std::string           name;
    std::vector<unsigned> experts;
    std::vector<unsigned> weights;  // bits of a half
};

struct parsed {
    std::vector<record> records;
    bool                whole   = true;   // no torn record at the end
    uint64_t            choices = 0;
};

static parsed parse(const std::string & bytes) {
    parsed                out;
    std::vector<uint64_t> n_expert_of;
    record                last;  // block
    size_t                at      = 12;
    const bool            weights = bytes.size() > 10 && bytes[10] == 1;
    const auto            byte    = [&] { return at < bytes.size() ? (uint8_t) bytes[at++] : (out.whole = false, (uint8_t) 0); };
    const auto            number  = [&] {
        uint64_t value = 0;
        for (int shift = 0;; shift += 7) {
            const uint8_t b = byte();
            value |= (uint64_t) (b & 127) << shift;
            if (b < 128) {
                return value;
            }
        }
    };
    const auto two = [&] {
        const unsigned low = byte();
        return low | (unsigned) byte() << 8;
    };
    while (at < bytes.size()) {
        record r;
        r.tag = (char) byte();
        if (r.tag == 'L') {
            r.layer    = number();
            r.n_expert = number();
            for (uint64_t i = number(); i > 0; i--) {
                r.name += (char) byte();
            }
            n_expert_of.resize(std::max<size_t>(n_expert_of.size(), r.layer + 1));
            n_expert_of[r.layer] = r.n_expert;
        } else if (r.tag == 'B' || r.tag == 'N' || r.tag == 'A') {
            // 'N' stands for the next layer, with as many tokens and experts as the block before
            r.layer          = r.tag != 'N' ? number() : last.layer + 1;
            r.n_tokens       = r.tag != 'N' ? number() : last.n_tokens;
            r.n_used         = r.tag != 'N' ? number() : last.n_used;
            const uint64_t n = r.n_tokens * r.n_used;
            unsigned width = 0, held = 0, gathered = 0;
            while ((uint64_t) 1 << width < n_expert_of.at(r.layer)) {
                width++;
            }
            for (uint64_t i = 0; i < n && out.whole; i++) {
                for (; held < width; held += 8) {
                    gathered |= (unsigned) byte() << held;
                }
                r.experts.push_back(gathered & ((1u << width) - 1));
                gathered >>= width;
                held -= width;
            }
            CHECK(gathered == 0 || !out.whole, "the last byte of the ids is filled with zeros");
            for (uint64_t i = 0; weights && i < n; i++) {
                r.weights.push_back(two());
            }
            out.choices += n;
            if (r.tag != 'A') {
                last = r;
            }
        } else {
            CHECK(r.tag == 'E', "record 0x%02x at byte %zu", r.tag & 255, at - 1);
            r.n_tokens = number();
            CHECK(at == bytes.size(), "something behind the end");
        }
        if (!out.whole) {
            break;
        }
        out.records.push_back(r);
    }
    return out;
}

// Tokens of a model with `n_layers` layers, one a block.
static void decode(hot::trace_writer & trace, int n_layers, int n_expert, int n_tokens, int n_used = 8) {
    unsigned random = 1;
    for (int token = 0; token < n_tokens; token++) {
        for (int layer = 0; layer < n_layers; layer++) {
            std::vector<int32_t> experts(n_used);
            for (int32_t & e : experts) {
                random = random * 1664525u + 1013904223u;
                e      = (int32_t) ((random >> 8) % (unsigned) n_expert);
            }
            trace.block(layer, "blk." + std::to_string(layer) + ".ffn_up_exps.weight", n_expert, 1, n_used, experts.data(), nullptr);
        }
    }
}

static void every_choice_comes_back_with_its_weight() {
    hot::trace_writer trace;
    CHECK(trace.start(folder + "/t", true).empty() && trace.on() && trace.with_weights(), "start");
    std::vector<int32_t> experts;
    std::vector<float>   weights;
    for (int i = 0; i < 200 * 3; i++) {
        experts.push_back(i * 7 % 257);
        weights.push_back((float) i / 512.0f);
    }
    trace.block(0, "first", 257, 200, 3, experts.data(), weights.data());  // more than 127 tokens: a number of two bytes
    trace.block(1, "", 256, 1, 3, experts.data(), weights.data());
    trace.block(300, "far", 65536, 1, 1, experts.data() + 5, nullptr);
    CHECK(trace.tokens() == 200, "%d tokens", (int) trace.tokens());
    CHECK(trace.stop().empty() && !trace.on(), "stop");

    const std::string bytes = read_file(folder + "/t");
    CHECK(trace.bytes() == bytes.size(), "%d bytes", (int) trace.bytes());
    const std::vector<record> r = parse(bytes).records;
    CHECK(r.size() == 7, "%zu records", r.size());
    if (r.size() != 7) {
        return;
    }
    CHECK(r[0].tag == 'L' && r[0].layer == 0 && r[0].n_expert == 257 && r[0].name == "first", "the layer before its block");
    CHECK(r[1].tag == 'B' && r[1].layer == 0 && r[1].n_tokens == 200 && r[1].n_used == 3, "its block");
    bool equal = r[1].experts.size() == experts.size();
    for (size_t i = 0; equal && i < experts.size(); i++) {
        // a half of a number below 2 with 9 bits behind the point: its exponent and 10 bits, exactly
        int         exponent = 0;
        const float mantissa = std::frexp(weights[i], &exponent);
        const auto  half     = i == 0 ? 0u : (unsigned) ((exponent + 14) << 10) + (unsigned) (mantissa * 2048.0f) - 1024;
        equal = r[1].experts[i] == (unsigned) experts[i] && r[1].weights[i] == half;
    }
    CHECK(equal, "experts and weights");
    CHECK(r[2].name.empty() && r[2].n_expert == 256 && r[3].experts == std::vector<unsigned>({0, 7, 14}), "a second layer");
    CHECK(r[4].layer == 300 && r[4].n_expert == 65536 && r[5].experts == std::vector<unsigned>{35}, "a third");
    CHECK(r[5].weights == std::vector<unsigned>{0x7e00}, "a weight that is not there is NaN");
    CHECK(r[6].tag == 'E' && r[6].n_tokens == 200, "the end, and the number of tokens");
}

static void a_choice_costs_at_most_two_bytes() {
    const struct {
        int    n_expert, n_used;
        double most;
    } cases[] = {{128, 8, 1.05}, {256, 8, 1.2}, {512, 10, 1.35}, {32, 4, 1.05}, {8, 2, 1.1}, {128, 1, 2.15}};
    for (const auto & c : cases) {
        hot::trace_writer trace;
        trace.start(folder + "/t", false);
        decode(trace, 48, c.n_expert, 1000, c.n_used);
        CHECK(trace.stop().empty(), "stop");
        const double bytes = (double) read_file(folder + "/t").size() / (1000.0 * 48 * c.n_used);
        CHECK(bytes <= c.most, "%d of %d experts: %.3f bytes a choice", c.n_used, c.n_expert, bytes);
    }
}

static void a_trace_begins_with_layer_zero() {
    const int32_t     expert = 1;
    hot::trace_writer trace;
    trace.start(folder + "/t", false);
    for (int layer : {1, 2, 0, 1}) {
        trace.block(layer, "x", 4, 1, 1, &expert, nullptr);
    }
    trace.block(0, "x", 4, 0, 1, &expert, nullptr);
    trace.block(0, "x", 4, 1, 0, &expert, nullptr);
    CHECK(trace.stop().empty(), "stop");
    std::string tags;
    for (const record & r : parse(read_file(folder + "/t")).records) {
        tags += r.tag;
        tags += std::to_string(r.layer);
    }
    CHECK(tags == "L0B0L1N1E0", "%s", tags.c_str());
}

static void a_killed_server_leaves_whole_tokens_and_nearly_all_of_them() {
    hot::trace_writer trace;
    trace.start(folder + "/t", false);
    CHECK(read_file(folder + "/t").size() == 12, "the header is there at once");
    for (int round = 0; round < 20; round++) {
        decode(trace, 48, 128, 100);
        const std::string bytes = read_file(folder + "/t");  // as the killed server would have left it
        const parsed      left  = parse(bytes);
        CHECK(left.whole && left.choices % (48 * 8) == 0, "whole records, whole tokens: %zu bytes", bytes.size());
        CHECK(trace.bytes() - bytes.size() < 64 * 1024 + 2 * 48 * 12, "%d bytes missing", (int) (trace.bytes() - bytes.size()));
    }
    CHECK(read_file(folder + "/t").size() > 500000, "it was written as it grew");
    CHECK(trace.stop().empty(), "stop");
}

static void the_end_of_the_writer_ends_the_trace() {
    {
        hot::trace_writer trace;
        trace.start(folder + "/t", false);
        decode(trace, 2, 8, 3);
    }
    const std::vector<record> r = parse(read_file(folder + "/t")).records;
    CHECK(r.size() == 9 && r.back().tag == 'E' && r.back().n_tokens == 3, "%zu records", r.size());
}

static void a_second_trace_starts_from_nothing() {
    hot::trace_writer trace;
    for (int n_expert : {300, 8}) {
        CHECK(trace.start(folder + "/t", n_expert == 300).empty(), "start");
        CHECK(trace.tokens() == 0 && trace.bytes() == 12, "nothing yet");
        decode(trace, 1, n_expert, n_expert);
        CHECK(trace.tokens() == (uint64_t) n_expert, "tokens");
        CHECK(trace.stop().empty(), "stop");
    }
    const std::vector<record> r = parse(read_file(folder + "/t")).records;
    CHECK(r.size() == 10 && r[0].n_expert == 8 && r[9].n_tokens == 8, "%zu records", r.size());
}

static void without_a_start_all_is_harmless() {
    hot::trace_writer trace;
    decode(trace, 1, 8, 1);
    CHECK(!trace.on() && trace.tokens() == 0 && trace.stop().empty() && trace.stop().empty(), "not started");
}

static void what_is_no_trace_is_never_overwritten() {
    const std::string model = folder + "/model.gguf", pipe = folder + "/pipe", empty = folder + "/empty";
    write_file(model, "GGUF and the rest");
    write_file(empty, "");
    CHECK(mkfifo(pipe.c_str(), 0600) == 0, "mkfifo");
    hot::trace_writer trace;
    CHECK(holds(trace.start(model, false), "not overwritten"), "a model");
    CHECK(holds(trace.start(pipe, false), "no regular file"), "a pipe");
    CHECK(holds(trace.start(folder, false), "no regular file"), "a folder");
    CHECK(holds(trace.start(folder + "/none/t", false), "No such file"), "no folder");
    CHECK(!trace.on() && read_file(model) == "GGUF and the rest", "the model must be as it was");
    CHECK(trace.start(empty, false).empty(), "an empty file may be one");
    CHECK(holds(trace.start(folder + "/u", false), "stop it first"), "one at a time");
    CHECK(trace.on() && trace.stop().empty() && read_file(empty).size() == 14, "the first one goes on");
    for (const std::string & path : {model, pipe, empty}) {
        unlink(path.c_str());
    }
}

static void a_block_that_does_not_fit_ends_the_trace() {
    const int32_t good[] = {1, 2}, negative[] = {1, -1}, beyond[] = {1, 8};
    const struct {
        const char *    what;
        int             layer;
        const char *    name;
        int             n_expert, n_used;
        const int32_t * experts;
    } cases[] = {
        {"an expert below zero", 0, "x", 8, 2, negative},      {"an expert beyond the last", 0, "x", 8, 2, beyond},
        {"more experts used than there are", 0, "x", 1, 2, good}, {"too many experts", 1, "y", 65537, 2, good},
        {"another number of experts", 0, "x", 9, 2, good},     {"another name", 0, "z", 8, 2, good},
        {"a layer below zero", -1, "x", 8, 2, good},
    };
    for (const auto & c : cases) {
        hot::trace_writer trace;
        trace.start(folder + "/t", false);
        trace.block(0, "x", 8, 1, 2, good, nullptr);
        trace.block(c.layer, c.name, c.n_expert, 1, c.n_used, c.experts, nullptr);
        CHECK(!trace.on(), "%s", c.what);
        trace.block(0, "x", 8, 1, 2, good, nullptr);
        CHECK(holds(trace.stop(), "ended early") && trace.stop().empty(), "%s: stop tells once", c.what);
        const std::vector<record> r = parse(read_file(folder + "/t")).records;
        CHECK(r.size() == 2 && r[1].experts == std::vector<unsigned>({1, 2}), "%s: what came before is there", c.what);
    }
}

static void a_full_disk_ends_the_trace_and_stop_says_so() {
    rlimit usual{};
    getrlimit(RLIMIT_FSIZE, &usual);
    rlimit full   = usual;
    full.rlim_cur = 100000;
    signal(SIGXFSZ, SIG_IGN);
    hot::trace_writer trace;
    CHECK(trace.start(folder + "/t", false).empty(), "start");
    setrlimit(RLIMIT_FSIZE, &full);
    decode(trace, 48, 128, 400);
    CHECK(!trace.on(), "150 KB must not have fitted");
    CHECK(holds(trace.stop(), "File too large"), "stop says why");
    const parsed left = parse(read_file(folder + "/t"));
    CHECK(left.choices > 60000, "%d choices are left", (int) left.choices);

    full.rlim_cur = 5;
    setrlimit(RLIMIT_FSIZE, &full);
    CHECK(holds(trace.start(folder + "/t", false), "File too large") && !trace.on(), "no room for the header");
    setrlimit(RLIMIT_FSIZE, &usual);
}

// A long prompt shows its last layer only.
static void the_last_layer_of_a_prompt_is_a_lone_block() {
    const int     first = 0, second = 0, last = 0;  // their addresses tell layers apart
    const int32_t experts[] = {1, 2, 3, 4, 5, 6};
    hot::routing_trace trace;
    CHECK(trace.start(folder + "/t", true).empty(), "start");
    const auto block = [&](const int & layer, const char * name, int at, int n_tokens = 1) {
        trace.block(&layer, name, 8, n_tokens, 2, experts + at, std::vector<float>((size_t) n_tokens * 2, 0.5f));
    };
    const auto token = [&] {
        trace.begin_batch();
        block(first, "first", 0);
        block(second, "second", 1);
        block(last, "last", 2);
    };
    block(last, "last", 3);  // of a batch that was at work when the trace started
    trace.begin_batch();
    block(last, "last", 3);
    token();
    token();
    trace.begin_batch();
    block(last, "last", 1, 2);
    token();
    trace.begin_batch();
    block(last, "last", 4);  // nobody knows yet whether it is alone
    CHECK(trace.stop().empty(), "stop");
    std::string seen;
    for (const record & r : parse(read_file(folder + "/t")).records) {
        seen += r.tag == 'L' || r.tag == 'E' ? std::string(1, r.tag) : r.tag + std::to_string(r.layer) + std::to_string(r.experts[0]);
        seen += ' ';
    }
    CHECK(seen == "L B01 L N12 L A24 N23 B01 N12 N23 A22 B01 N12 N23 E ", "%s", seen.c_str());
}

static void lone_blocks_of_a_layer_that_never_gets_a_number_do_not_pile_up() {
    const int     only = 0;
    const int32_t experts[] = {1, 2};
    hot::routing_trace trace;
    CHECK(trace.start(folder + "/t", false).empty(), "start");
    for (int i = 0; i < 2000; i++) {
        trace.begin_batch();
        trace.block(&only, "only", 8, 1, 2, experts, {});
    }
    CHECK(trace.stop().empty() && read_file(folder + "/t").size() == 14, "a header and an end");
}

int main(int argc, char ** argv) {
    if (argc == 2) {
        const std::string error = write_sample(argv[1]);
        CHECK(error.empty(), "%s", error.c_str());
        return verdict(argv[1]);
    }
    char name[] = "/tmp/hot-trace-XXXXXX";
    folder      = mkdtemp(name) ? name : "";
    CHECK(!folder.empty(), "a folder to work in");

    the_sample_has_exactly_the_documented_bytes();
    every_choice_comes_back_with_its_weight();
    a_choice_costs_at_most_two_bytes();
    a_trace_begins_with_layer_zero();
    a_killed_server_leaves_whole_tokens_and_nearly_all_of_them();
    the_end_of_the_writer_ends_the_trace();
    a_second_trace_starts_from_nothing();
    without_a_start_all_is_harmless();
    what_is_no_trace_is_never_overwritten();
    a_block_that_does_not_fit_ends_the_trace();
    the_last_layer_of_a_prompt_is_a_lone_block();
    lone_blocks_of_a_layer_that_never_gets_a_number_do_not_pile_up();
    a_full_disk_ends_the_trace_and_stop_says_so();

    unlink((folder + "/t").c_str());
    unlink((folder + "/sample").c_str());
    CHECK(rmdir(folder.c_str()) == 0, "something was left in %s", folder.c_str());
    return verdict("trace");
}
