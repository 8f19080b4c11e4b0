#include "profile.h"

#include "gguf.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <system_error>

namespace hot {

using json = nlohmann::json;

namespace {

// A profile of a hundred layers of 512 experts is some 500 KB; the description of as many imatrix tensors still less.
// The rest of an imatrix, which may be gigabytes, is read only where the counts lie.
constexpr uint64_t MAX_HEAD_BYTES = 16 << 20;
constexpr uint64_t MAX_COUNTS     = 1 << 20;  // over all weights
constexpr double   MAX_USES       = 1e15;     // beyond, a double no longer counts

// A layer's name for an error text, whatever bytes the file has there.
std::string quoted(std::string name) {
    name.resize(std::min<size_t>(name.size(), 80));
    std::replace_if(name.begin(), name.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    return "'" + name + "'";
}

bool plausible(double uses) {
    return uses >= 0 && uses <= MAX_USES;  // false for NaN
}

struct input {
    std::ifstream file;
    uint64_t      size = 0;
    std::string   head;  // up to MAX_HEAD_BYTES

    bool is_gguf() const { return head.compare(0, strlen(GGUF_MAGIC), GGUF_MAGIC) == 0; }
};

std::string system_problem() {
    return std::generic_category().message(errno);
}

// Only regular files: a pipe could block for ever, a device never end. Throws an error text, as all below do.
input open_input(const std::string & path, uint64_t max_head) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) {
        throw std::runtime_error(error ? error.message() : "it is not a regular file");
    }
    input in;
    errno = 0;
    in.file.open(path, std::ios::binary);
    in.size = std::filesystem::file_size(path, error);
    if (!in.file || error) {
        throw std::runtime_error("it cannot be opened: " + system_problem());
    }
    in.head.resize(std::min(in.size, max_head));
    if (!in.file.read(in.head.data(), (std::streamsize) in.head.size())) {
        throw std::runtime_error("it cannot be read");
    }
    return in;
}

profile parse_profile(const input & in) {
    if (in.size > MAX_HEAD_BYTES) {
        throw std::runtime_error("it is too large for a profile");
    }
    // brackets alone would take a hundred times their size in memory
    const auto refuse_depth = [](int depth, json::parse_event_t, json &) {
        return depth <= 3 ? true : throw std::runtime_error("it is nested too deep for a profile");
    };
    json root;
    try {
        root = json::parse(in.head, refuse_depth);
    } catch (const json::parse_error & e) {
        throw std::runtime_error("it is neither JSON (see byte " + std::to_string(e.byte) + ") nor an imatrix in GGUF format");
    } catch (const json::out_of_range &) {
        throw std::runtime_error("it has a number that is out of range");
    }
    const auto version = root.is_object() ? root.find("version") : root.end();
    if (version == root.end() || *version != 1) {
        throw std::runtime_error("it is not a profile of version 1");
    }
    const auto layers = root.find("layers");
    if (layers == root.end() || !layers->is_object()) {
        throw std::runtime_error("\"layers\" must be an object");
    }
    profile p;
    for (const auto & [name, uses] : layers->items()) {
        const bool numbers = uses.is_array() && std::all_of(uses.begin(), uses.end(), [](const json & u) {
            return u.is_number() && plausible(u.get<double>());
        });
        if (!numbers) {
            throw std::runtime_error("layer " + quoted(name) + " must be a list of numbers from 0 to 1e15");
        }
        p[name] = uses.get<std::vector<double>>();
    }
    return p;
}

struct gguf_deleter {
    void operator()(gguf_context * gguf) const { gguf_free(gguf); }
};

// llama-imatrix writes, for every weight it saw, "<weight>.counts" ([1, n_expert] of F32) and far larger sums. A weight
// without experts has a single count, and so have the experts of an imatrix that was converted from the old format: a
// count that is the same for all says nothing about them.
profile parse_imatrix(input & in) {
    const std::unique_ptr<gguf_context, gguf_deleter> gguf(gguf_init_from_buffer(in.head.data(), in.head.size(), {true, nullptr}));
    if (!gguf) {
        throw std::runtime_error("it is broken or no GGUF file that this build can read");
    }
    const uint64_t data = gguf_get_data_offset(gguf.get());
    const std::string suffix = ".counts";
    profile  p;
    uint64_t n_counts = 0;
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); i++) {
        const std::string name   = gguf_get_tensor_name(gguf.get(), i);
        const uint64_t    size   = gguf_get_tensor_size(gguf.get(), i);
        const uint64_t    offset = gguf_get_tensor_offset(gguf.get(), i);
        if (data > in.size || offset > in.size - data || size > in.size - data - offset) {
            throw std::runtime_error("it is cut short: " + quoted(name) + " is not all there");
        }
        if (name.size() <= suffix.size() || name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0) {
            continue;
        }
        if (gguf_get_tensor_type(gguf.get(), i) != GGML_TYPE_F32) {
            throw std::runtime_error(quoted(name) + " must be F32");
        }
        n_counts += size / sizeof(float);
        if (n_counts > MAX_COUNTS) {
            throw std::runtime_error("it has more counts than any model has experts");
        }
        std::vector<float> counts(size / sizeof(float));
        if (counts.size() < 2) {
            continue;
        }
        in.file.seekg((std::streamoff) (data + offset));
        if (!in.file.read((char *) counts.data(), (std::streamsize) size)) {
            throw std::runtime_error("it cannot be read");
        }
        if (!std::all_of(counts.begin(), counts.end(), plausible)) {
            throw std::runtime_error(quoted(name) + " must be numbers from 0 to 1e15");
        }
        p[name.substr(0, name.size() - suffix.size())] = std::vector<double>(counts.begin(), counts.end());
    }
    if (p.empty()) {
        throw std::runtime_error("it is no imatrix that tells experts apart (a model without experts, or made from an old .dat file?)");
    }
    return p;
}

}  // namespace

std::string load_profile(const std::string & path, profile & out) {
    try {
        input in = open_input(path, MAX_HEAD_BYTES);
        out = in.is_gguf() ? parse_imatrix(in) : parse_profile(in);
        return "";
    } catch (const std::exception & e) {
        return "cannot take " + path + " for a profile: " + e.what();
    }
}

// Whether something is there that save_profile cannot have written: an imatrix of the new or the old format, a model,
// a device.
static bool is_foreign(const std::string & path) {
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
        return false;
    }
    try {
        const input in = open_input(path, 1);
        return !in.head.empty() && in.head[0] != '{';
    } catch (const std::exception &) {
        return true;
    }
}

bool is_imatrix(const std::string & path) {
    try {
        return open_input(path, strlen(GGUF_MAGIC)).is_gguf();
    } catch (const std::exception &) {
        return false;
    }
}

std::string save_profile(const std::string & path, const profile & p) {
    if (is_foreign(path)) {
        return "will not overwrite " + path + ": it is no profile";
    }
    for (const auto & [name, uses] : p) {
        if (!std::all_of(uses.begin(), uses.end(), plausible)) {
            return "will not write " + path + ": layer " + quoted(name) + " has uses that are no numbers from 0 to 1e15";
        }
    }
    const nlohmann::ordered_json root = {{"version", 1}, {"layers", p}};
    const std::string part = path + ".part";
    errno = 0;
    {
        std::ofstream file(part, std::ios::trunc);
        file << root.dump(-1, ' ', false, json::error_handler_t::replace) << '\n';
        file.close();
        if (!file) {
            const std::string problem = "cannot write " + part + ": " + system_problem();
            std::remove(part.c_str());
            return problem;
        }
    }
    if (std::rename(part.c_str(), path.c_str()) != 0) {
        const std::string problem = "cannot write " + path + ": " + system_problem();
        std::remove(part.c_str());
        return problem;
    }
    return "";
}

const std::vector<double> * find_uses(const profile & p, const std::vector<std::string> & names, int n_expert) {
    for (const std::string & name : names) {
        const auto uses = p.find(name);
        if (uses != p.end() && (int) uses->second.size() == n_expert) {
            return &uses->second;
        }
    }
    return nullptr;
}

}  // namespace hot
