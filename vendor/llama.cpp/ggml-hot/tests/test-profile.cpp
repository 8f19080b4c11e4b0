// Profiles: written and read back, from an imatrix, and from files that mean no good.
#include "../src/profile.h"
#include "check.h"

#include "ggml.h"
#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace fs = std::filesystem;
using hot::profile;

static fs::path folder;

static std::string path_of(const char * name) {
    return (folder / name).string();
}

static void write(const std::string & path, const std::string & bytes) {
    fs::remove(path);  // a new file: some file systems flush one that is written over
    std::ofstream(path, std::ios::binary) << bytes;
}

static std::string read(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// ---- profiles ----

static void what_is_saved_is_loaded_again() {
    const std::string path = path_of("round-trip.json");
    const profile saved = {{"blk.0.ffn_up_exps.weight", {0, 1, 2.5, 1e15}}, {"blk.11.ffn_gate_up_exps.weight", {1.0 / 3, 5e-324}},
                           {"a \"name\" \\ with\nall\tsorts", {1}}, {"", {}}};
    CHECK(hot::save_profile(path, saved).empty(), "%s", hot::save_profile(path, saved).c_str());
    profile loaded;
    CHECK(hot::load_profile(path, loaded).empty() && loaded == saved, "not the same");
    const std::string text = read(path);
    CHECK(text.rfind("{\"version\":1,\"layers\":{", 0) == 0 && text.back() == '\n', "%s", text.c_str());
    CHECK(!fs::exists(path + ".part"), "nothing else is left behind");
}

static void saving_replaces_the_file_as_a_whole_or_leaves_it_alone() {
    const std::string path = path_of("replaced.json");
    CHECK(hot::save_profile(path, {{"a", {1}}}).empty() && hot::save_profile(path, {{"b", {2}}}).empty(), "twice");
    profile loaded;
    CHECK(hot::load_profile(path, loaded).empty() && loaded == profile({{"b", {2}}}), "the second");
    const std::string before = read(path);
    fs::create_directory(path + ".part");  // in the way
    CHECK(!hot::save_profile(path, {{"c", {3}}}).empty() && read(path) == before, "an error, and the old profile");
    CHECK(!hot::save_profile(path_of("no/such/folder.json"), {}).empty(), "no such folder");
    CHECK(!hot::save_profile(folder.string(), {}).empty() && !fs::exists(folder.string() + ".part"), "a folder");
}

static void uses_that_could_not_be_read_again_are_not_written() {
    const std::string path = path_of("refused.json");
    for (double u : {-1.0, std::nan(""), std::numeric_limits<double>::infinity(), 2e15}) {
        CHECK(!hot::save_profile(path, {{"a", {0, u}}}).empty() && !fs::exists(path), "%g", u);
    }
    CHECK(hot::save_profile(path, {{"not UTF-8: \xff\xfe", {1}}}).empty(), "a name is no reason to lose a profile");
    profile loaded;
    CHECK(hot::load_profile(path, loaded).empty() && loaded.size() == 1, "nor to have it unreadable");
}

static void a_file_that_is_no_profile_is_not_overwritten() {
    const std::string path = path_of("foreign");
    for (const std::string bytes : {"GGUF\3", "\1\0\0\0\7", "notes", "[1]"}) {
        write(path, bytes);
        CHECK(!hot::save_profile(path, {}).empty() && read(path) == bytes, "%s", bytes.c_str());
    }
    fs::remove(path);
    CHECK(mkfifo(path.c_str(), 0600) == 0 && !hot::save_profile(path, {}).empty() && fs::is_fifo(path), "a pipe");
    fs::remove(path);
    for (const char * bytes : {"", "{\"version\":1,\"la"}) {
        write(path, bytes);
        CHECK(hot::save_profile(path, {}).empty(), "a torn profile is: %s", bytes);
    }
}

static void an_integer_is_a_number_and_other_keys_are_none_of_our_business() {
    const std::string path = path_of("other.json");
    write(path, "{\"layers\": {\"a\": [1, 2.5, 0]}, \"made_by\": [\"someone\"], \"version\": 1}\n");
    profile loaded;
    CHECK(hot::load_profile(path, loaded).empty() && loaded == profile({{"a", {1, 2.5, 0}}}), "read");
}

static void uses_are_found_by_any_of_the_names_for_the_right_number_of_experts() {
    const profile p = {{"up", {1, 2, 3}}, {"down", {4, 5, 6, 7}}};
    CHECK(hot::find_uses(p, {"gate", "up", "down"}, 3) == &p.at("up"), "by its second name");
    CHECK(hot::find_uses(p, {"gate", "up", "down"}, 4) == &p.at("down"), "another's size does not hide it");
    CHECK(!hot::find_uses(p, {"gate", "up", "down"}, 5) && !hot::find_uses(p, {"down"}, 3), "another number of experts");
    CHECK(!hot::find_uses(p, {"gate"}, 3) && !hot::find_uses(p, {}, 3) && !hot::find_uses({}, {"up"}, 3), "none");
}

// ---- imatrix ----

struct counted {
    std::string        weight;
    std::vector<float> counts;
};

// As llama-imatrix writes it: for each weight its sums and its counts, one row for each expert.
static void write_imatrix(const std::string & path, const std::vector<counted> & weights, ggml_type type = GGML_TYPE_F32) {
    ggml_context * ctx  = ggml_init({32 << 20, nullptr, false});
    gguf_context * gguf = gguf_init_empty();
    gguf_set_val_str(gguf, "general.type", "imatrix");
    const char * datasets[] = {"calibration.txt"};
    gguf_set_arr_str(gguf, "imatrix.datasets", datasets, 1);
    gguf_set_val_u32(gguf, "imatrix.chunk_count", 7);
    gguf_set_val_u32(gguf, "imatrix.chunk_size", 512);
    for (const counted & w : weights) {
        const int64_t n = (int64_t) w.counts.size();
        ggml_tensor * squares = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2, n);
        ggml_tensor * counts  = ggml_new_tensor_2d(ctx, type, 1, n);
        ggml_tensor * sums    = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 2, n);
        ggml_format_name(squares, "%s.in_sum2", w.weight.c_str());
        ggml_format_name(counts, "%s.counts", w.weight.c_str());
        ggml_format_name(sums, "%s.in_sum", w.weight.c_str());
        std::fill_n((float *) squares->data, 2 * n, NAN);
        std::fill_n((float *) sums->data, 2 * n, -1.0f);
        memcpy(counts->data, w.counts.data(), std::min(ggml_nbytes(counts), w.counts.size() * sizeof(float)));
        for (const ggml_tensor * t : {squares, counts, sums}) {
            gguf_add_tensor(gguf, t);
        }
    }
    CHECK(gguf_write_to_file(gguf, path.c_str(), false), "write %s", path.c_str());
    gguf_free(gguf);
    ggml_free(ctx);
}

static void an_imatrix_gives_the_counts_of_its_expert_weights() {
    const std::string path = path_of("imatrix.gguf");
    write_imatrix(path, {{"blk.0.attn_q.weight", {4096}},
                         {"blk.0.ffn_up_exps.weight", {10, 0, 30, 16777216}},
                         {"blk.1.ffn_gate_up_exps.weight", {1, 2, 3}}});
    profile loaded;
    const std::string problem = hot::load_profile(path, loaded);
    CHECK(problem.empty(), "%s", problem.c_str());
    CHECK(loaded == profile({{"blk.0.ffn_up_exps.weight", {10, 0, 30, 16777216}}, {"blk.1.ffn_gate_up_exps.weight", {1, 2, 3}}}),
          "%zu layers", loaded.size());
}

static void an_imatrix_that_does_not_tell_experts_apart_is_refused() {
    const std::string path = path_of("dense.gguf");
    write_imatrix(path, {{"blk.0.ffn_up_exps.weight", {512}}, {"blk.0.attn_q.weight", {512}}});
    profile loaded = {{"kept", {1}}};
    CHECK(hot::load_profile(path, loaded).find("tells experts apart") != std::string::npos, "single counts only");
    write_imatrix(path, {});
    CHECK(!hot::load_profile(path, loaded).empty(), "no tensors at all");
    CHECK(loaded == profile({{"kept", {1}}}), "unchanged");
}

static void an_imatrix_is_known_by_its_magic() {
    const std::string path = path_of("magic");
    write_imatrix(path, {{"a", {1, 2}}});
    CHECK(hot::is_imatrix(path), "an imatrix");
    CHECK(!hot::save_profile(path, {{"a", {1}}}).empty() && hot::is_imatrix(path), "never overwritten");
    for (const char * bytes : {"", "GGU", "{\"version\":1,\"layers\":{}}", " GGUF"}) {
        write(path, bytes);
        CHECK(!hot::is_imatrix(path), "'%s' is none", bytes);
    }
    CHECK(!hot::is_imatrix(path_of("nowhere")) && !hot::is_imatrix(folder.string()), "nor what is no file");
}

// ---- files that mean no good ----

static void expect_refusal(const std::string & path, const char * what) {
    const profile before = {{"kept", {1, 2}}};
    profile out = before;
    const std::string problem = hot::load_profile(path, out);
    CHECK(!problem.empty() && out == before, "%s must be refused", what);
    CHECK(problem.find(path) != std::string::npos, "the text names the file: %s", problem.c_str());
}

static void what_is_no_profile_of_version_1_is_refused() {
    const std::string path = path_of("broken.json"), brackets(1 << 20, '[');
    for (const std::string & text : {
             std::string(), std::string(4, '\0'), std::string("{"), std::string("null"), std::string("1"), std::string("[]"),
             std::string("{}"), std::string(R"({"version":1})"), std::string(R"({"layers":{}})"),
             std::string(R"({"version":2,"layers":{}})"), std::string(R"({"version":"1","layers":{}})"),
             std::string(R"({"version":true,"layers":{}})"),
             std::string(R"({"version":1,"layers":{"a":[1]}} and more)"), std::string(R"({"version":1,"layers":{},"x":[[[[]]]]})"),
             brackets, R"({"version":1,"layers":)" + brackets}) {
        write(path, text);
        expect_refusal(path, text.substr(0, 60).c_str());
    }
}

static void layers_without_proper_uses_are_refused() {
    const std::string path = path_of("layers.json");
    for (const char * layers : {"[]", "null", R"({"a":1})", R"({"a":{}})", R"({"a":null})", R"({"a":[[1]]})", R"({"a":["1"]})",
                                R"({"a":[true]})", R"({"a":[null]})", R"({"a":[-1]})", R"({"a":[-1e-300]})", R"({"a":[NaN]})",
                                R"({"a":[1e999]})", R"({"a":[1e16]})", R"({"a":[18446744073709551615]})", "{\"\xff\":[1]}",
                                R"({"good":[1],"a":[1,2,-3]})"}) {
        write(path, std::string(R"({"version":1,"layers":)") + layers + "}");
        expect_refusal(path, layers);
    }
}

static void what_is_no_regular_file_is_refused() {
    expect_refusal(path_of("nowhere.json"), "a missing file");
    expect_refusal(folder.string(), "a folder");
    expect_refusal("/dev/zero", "a device that never ends");
    const std::string pipe = path_of("pipe");
    CHECK(mkfifo(pipe.c_str(), 0600) == 0, "mkfifo");
    expect_refusal(pipe, "a pipe that nobody writes to");
}

static void a_huge_file_is_refused_without_reading_it() {
    const std::string path = path_of("huge");
    write(path, "{");
    fs::resize_file(path, (uintmax_t) 1 << 40);  // sparse
    expect_refusal(path, "a terabyte");
    profile out;
    CHECK(hot::load_profile(path, out).find("too large") != std::string::npos, "not for the zeros in it");
    write(path, "GGUF\3");
    fs::resize_file(path, (uintmax_t) 1 << 40);
    expect_refusal(path, "a terabyte");
    fs::remove(path);
}

static void an_error_text_is_fit_for_a_log() {
    const std::string path = path_of("rude.json");
    const std::string rude_name = R"("a\n\u001b[31m)" + std::string(5000, 'x') + R"(":[-1])";
    const std::string rude_number = R"("a":[1)" + std::string(5000, '0') + "]";
    for (const std::string & layer : {rude_name, rude_number}) {
        write(path, R"({"version":1,"layers":{)" + layer + "}}");
        profile out;
        const std::string problem = hot::load_profile(path, out);
        CHECK(!problem.empty() && problem.size() < 1000 && problem.find_first_of("\n\x1b") == std::string::npos, "%s", problem.c_str());
    }
}

static void impossible_counts_in_an_imatrix_are_refused() {
    const std::string path = path_of("counts.gguf");
    for (float bad : {-1.0f, NAN, INFINITY, 1e30f}) {
        write_imatrix(path, {{"blk.0.ffn_up_exps.weight", {1, bad}}});
        expect_refusal(path, "an impossible count");
    }
    write_imatrix(path, {{"blk.0.ffn_up_exps.weight", {1, 2, 3, 4}}}, GGML_TYPE_F16);
    expect_refusal(path, "another type");
    const std::vector<float> half((1 << 19) + 1, 1);
    write_imatrix(path, {{"blk.0.ffn_up_exps.weight", half}, {"blk.1.ffn_up_exps.weight", half}});
    expect_refusal(path, "more experts than any model has");
}

// Overwrites a number in a file, behind the first appearance of `text`.
template <typename T> static std::string patched(std::string bytes, const std::string & text, size_t behind, T value) {
    const size_t at = bytes.find(text);
    CHECK(at != std::string::npos, "%s", text.c_str());
    memcpy(&bytes[at + text.size() + behind], &value, sizeof(value));
    return bytes;
}

static void sizes_that_an_imatrix_does_not_have_are_refused() {
    const std::string path = path_of("sizes.gguf"), name = "blk.0.ffn_up_exps.weight.counts";
    write_imatrix(path, {{"blk.0.ffn_up_exps.weight", {1, 2, 3, 4}}});
    const std::string good = read(path);
    // behind the name: number of dimensions (4 bytes), dimensions (8 each), type (4), offset (8)
    for (int64_t ne : {(int64_t) -1, (int64_t) 9, (int64_t) 1 << 20, (int64_t) 1 << 40, (int64_t) 1 << 62, INT64_MAX}) {
        write(path, patched(good, name, 4, ne));
        expect_refusal(path, "rows longer than the file");
        write(path, patched(good, name, 12, ne));
        expect_refusal(path, "more experts than the file");
    }
    for (uint64_t offset : {(uint64_t) 0, (uint64_t) 1, (uint64_t) 1 << 40, UINT64_MAX, UINT64_MAX - 31}) {
        write(path, patched(good, name, 24, offset));
        expect_refusal(path, "an offset elsewhere");
    }
    for (uint64_t n : {(uint64_t) 1 << 20, (uint64_t) 1 << 30, UINT64_MAX}) {
        write(path, patched(good, "imatrix.datasets", 8, n));  // behind the name: array, type of its elements, their number
        expect_refusal(path, "a list longer than the file");
    }
    for (size_t at : {8, 16}) {  // numbers of tensors and of keys
        std::string bytes = good;
        memset(&bytes[at], 0x7f, 8);
        write(path, bytes);
        expect_refusal(path, "more tensors or keys than the file can hold");
    }
}

static void a_file_cut_short_is_refused_wherever_it_ends() {
    const std::string path = path_of("cut");
    write_imatrix(path, {{"blk.0.ffn_up_exps.weight", {1, 2, 3, 4}}, {"blk.1.ffn_up_exps.weight", {5, 6, 7, 8, 9, 10, 11, 12}}});
    const std::string imatrix = read(path);  // its end is full: 64 bytes of sums
    const std::string json    = "{\"version\":1,\"layers\":{\"blk.0.ffn_up_exps.weight\":[1,2,3,4]}}";
    for (const std::string & whole : {imatrix, json}) {
        for (size_t length = 0; length < whole.size(); length++) {
            write(path, whole.substr(0, length));
            expect_refusal(path, "a torn file");
        }
        write(path, whole);
        profile out;
        CHECK(hot::load_profile(path, out).empty(), "the whole file is fine");
    }
}

// Changes a few places: other bytes, extreme numbers, parts cut out or doubled.
static std::string mutated(std::string bytes, std::mt19937 & random) {
    const uint64_t extremes[] = {0, 1, 0x7fffffff, 0xffffffff, (uint64_t) 1 << 31, (uint64_t) 1 << 40, INT64_MAX, UINT64_MAX};
    for (unsigned n = 1 + random() % 4; n > 0 && !bytes.empty(); n--) {
        const size_t at = random() % bytes.size(), length = std::min<size_t>(1 + random() % 16, bytes.size() - at);
        const uint64_t number = extremes[random() % std::size(extremes)];
        switch (random() % 5) {
            case 0: bytes[at] = (char) random(); break;
            case 1: bytes[at] = (char) (bytes[at] ^ (1 << random() % 8)); break;
            case 2: memcpy(&bytes[at], &number, std::min<size_t>(random() % 2 ? 4 : 8, bytes.size() - at)); break;
            case 3: bytes.erase(at, length); break;
            case 4: bytes.insert(at, bytes.substr(at, length)); break;
        }
    }
    return bytes;
}

static void a_mutated_file_gives_plausible_uses_or_an_error(int rounds) {
    const std::string path = path_of("mutated");
    write_imatrix(path, {{"blk.0.ffn_up_exps.weight", {1, 2, 3, 4}}, {"blk.1.ffn_up_exps.weight", {5, 6, 7, 8, 9}}, {"c", {1}}});
    const std::string imatrix = read(path);
    fs::remove(path);
    const profile two = {{"blk.0.ffn_up_exps.weight", {1, 2.5, 4e10}}, {"blk.1.ffn_up_exps.weight", {0, 7}}};
    CHECK(hot::save_profile(path, two).empty(), "save %s", path.c_str());
    const std::string json = read(path);
    std::mt19937 random(1);
    int taken = 0, refused = 0;
    for (int round = 0; round < rounds; round++) {
        const std::string bytes = mutated(round % 2 ? imatrix : json, random);
        write(path, bytes);
        const profile before = {{"kept", {1}}};
        profile out = before;
        const std::string problem = hot::load_profile(path, out);
        (problem.empty() ? taken : refused)++;
        CHECK(problem.empty() || out == before, "round %d: refused and changed", round);
        size_t n_uses = 0;
        for (const auto & [name, uses] : out) {
            n_uses += uses.size();
            for (double u : uses) {
                CHECK(u >= 0 && u <= 1e15, "round %d: %g uses", round, u);
            }
        }
        CHECK(n_uses <= bytes.size(), "round %d: %zu uses out of %zu bytes", round, n_uses, bytes.size());
    }
    CHECK(taken > rounds / 50 && refused > rounds / 5, "%d taken, %d refused: the mutations test too little", taken, refused);
}

int main(int argc, char ** argv) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);  // gguf's own complaints
    std::string name = (fs::temp_directory_path() / "hot-profile-test-XXXXXX").string();
    if (!mkdtemp(name.data())) {
        printf("no temporary folder\n");
        return 1;
    }
    folder = name;
    what_is_saved_is_loaded_again();
    saving_replaces_the_file_as_a_whole_or_leaves_it_alone();
    uses_that_could_not_be_read_again_are_not_written();
    a_file_that_is_no_profile_is_not_overwritten();
    an_integer_is_a_number_and_other_keys_are_none_of_our_business();
    uses_are_found_by_any_of_the_names_for_the_right_number_of_experts();
    an_imatrix_gives_the_counts_of_its_expert_weights();
    an_imatrix_that_does_not_tell_experts_apart_is_refused();
    an_imatrix_is_known_by_its_magic();
    what_is_no_profile_of_version_1_is_refused();
    layers_without_proper_uses_are_refused();
    what_is_no_regular_file_is_refused();
    a_huge_file_is_refused_without_reading_it();
    an_error_text_is_fit_for_a_log();
    impossible_counts_in_an_imatrix_are_refused();
    sizes_that_an_imatrix_does_not_have_are_refused();
    a_file_cut_short_is_refused_wherever_it_ends();
    a_mutated_file_gives_plausible_uses_or_an_error(argc > 1 ? atoi(argv[1]) : 4000);
    fs::remove_all(folder);
    return verdict("profile");
}
