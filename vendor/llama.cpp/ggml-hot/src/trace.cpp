#include "trace.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <sys/stat.h>

namespace hot {

static constexpr char   magic[]     = {'H', 'O', 'T', 'T', 'R', 'A', 'C', 'E'};
static constexpr int    version     = 2;
static constexpr int    has_weights = 1;            // a flag
static constexpr int    most_layers = 1 << 16;
static constexpr int    most_expert = 1 << 16;
static constexpr int    most_tokens = 1 << 20;      // of one block
static constexpr size_t most_lone   = 256;          // kept until their layer has a number
static constexpr size_t write_after = 64 * 1024;    // bytes; what a killed server loses, and the token it was at

// A path given by mistake must not cost the user a model, or block on a pipe.
static std::string why_not_overwrite(const std::string & path) {
    struct stat there {};
    if (stat(path.c_str(), &there) != 0) {
        return "";  // nothing there, or opening it will say what is wrong
    }
    if (!S_ISREG(there.st_mode)) {
        return path + " is no regular file";
    }
    char       head[sizeof(magic)];
    FILE *     file = there.st_size > 0 ? fopen(path.c_str(), "rbe") : nullptr;
    const bool ours = file && fread(head, 1, sizeof(head), file) == sizeof(head) && memcmp(head, magic, sizeof(magic)) == 0;
    if (file) {
        fclose(file);
    }
    return there.st_size == 0 || ours ? "" : path + " is there and is no routing trace: not overwritten";
}

trace_writer::~trace_writer() {
    const std::string error = stop();
    if (!error.empty()) {
        GGML_LOG_WARN("ggml_hot: trace: %s\n", error.c_str());
    }
}

std::string trace_writer::start(const std::string & path, bool with_weights) {
    if (file_) {
        return "a trace is being written already: stop it first";
    }
    std::string error = why_not_overwrite(path);
    if (!error.empty()) {
        return error;
    }
    file_ = fopen(path.c_str(), "wbe");
    if (!file_) {
        return "cannot write " + path + ": " + strerror(errno);
    }
    setvbuf(file_, nullptr, _IONBF, 0);  // pending_ is the buffer: it ends with whole tokens
    with_weights_ = with_weights;
    tokens_ = bytes_ = 0;
    error_.clear();
    pending_.assign(magic, magic + sizeof(magic));
    layers_.clear();
    last_ = {};
    put_u16(version);
    put_u16(with_weights ? has_weights : 0);
    return write_out() ? "" : stop();
}

std::string trace_writer::stop() {
    if (file_) {
        pending_.push_back('E');
        put_number(tokens_);
        if (write_out()) {
            const bool closed = fclose(file_) == 0;
            error_ = closed ? "" : strerror(errno);
            file_  = nullptr;
        }
    }
    std::string error;
    error.swap(error_);
    return error;
}

void trace_writer::block(int layer, const std::string & name, int n_expert, int n_tokens, int n_used, const int32_t * experts,
                         const float * weights) {
    if (!begin_block(layer, name, n_expert, n_tokens, n_used, experts)) {
        return;
    }
    if (layer > 0 && layer == last_.layer + 1 && n_tokens == last_.n_tokens && n_used == last_.n_used) {
        pending_.push_back('N');
    } else {
        put_sizes('B', layer, n_tokens, n_used);
    }
    last_ = {layer, n_tokens, n_used};
    put_choices(n_expert, (size_t) n_tokens * n_used, experts, weights);
    tokens_ += layer == 0 ? (uint64_t) n_tokens : 0;
}

void trace_writer::lone_block(int layer, const std::string & name, int n_expert, int n_tokens, int n_used, const int32_t * experts,
                              const float * weights) {
    if (tokens_ > 0 && begin_block(layer, name, n_expert, n_tokens, n_used, experts)) {
        put_sizes('A', layer, n_tokens, n_used);
        put_choices(n_expert, (size_t) n_tokens * n_used, experts, weights);
    }
}

// Whether the block can be written; its layer is described then. A block that no record can hold ends the trace.
bool trace_writer::begin_block(int layer, const std::string & name, int n_expert, int n_tokens, int n_used, const int32_t * experts) {
    if (!file_ || n_tokens <= 0 || n_used <= 0 || (layer != 0 && tokens_ == 0)) {
        return false;
    }
    const size_t n    = (size_t) n_tokens * n_used;
    const bool   fits = layer >= 0 && layer < most_layers && n_expert <= most_expert && n_tokens <= most_tokens && n_used <= n_expert &&
                      std::all_of(experts, experts + n, [&](int32_t e) { return e >= 0 && e < n_expert; });
    if (layer == 0 && pending_.size() >= write_after && !write_out()) {
        return false;
    }
    const std::string wrong = fits ? describe(layer, name, n_expert) : "no record can hold a block of layer " + std::to_string(layer);
    if (!wrong.empty()) {
        if (write_out()) {
            fail(wrong);
        }
        return false;
    }
    return true;
}

void trace_writer::put_sizes(char kind, int layer, int n_tokens, int n_used) {
    pending_.push_back((uint8_t) kind);
    put_number((uint64_t) layer);
    put_number((uint64_t) n_tokens);
    put_number((uint64_t) n_used);
}

void trace_writer::put_choices(int n_expert, size_t n, const int32_t * experts, const float * weights) {
    put_ids(experts, n, n_expert);
    for (size_t i = 0; with_weights_ && i < n; i++) {
        put_u16(ggml_fp32_to_fp16(weights ? weights[i] : NAN));
    }
}

// Once for each layer. "" or what is wrong.
std::string trace_writer::describe(int layer, const std::string & name, int n_expert) {
    if ((size_t) layer >= layers_.size()) {
        layers_.resize(layer + 1);
    }
    layer_facts & known = layers_[layer];
    if (known.n_expert != 0) {
        return known.n_expert == n_expert && known.name == name ? "" : "layer " + std::to_string(layer) + " is another one now";
    }
    known = {n_expert, name};
    pending_.push_back('L');
    put_number((uint64_t) layer);
    put_number((uint64_t) n_expert);
    put_number(name.size());
    pending_.insert(pending_.end(), name.begin(), name.end());
    return "";
}

// LEB128: seven bits a byte, the lowest first; the high bit says that more follow.
void trace_writer::put_number(uint64_t value) {
    for (; value >= 128; value >>= 7) {
        pending_.push_back((uint8_t) (value | 128));
    }
    pending_.push_back((uint8_t) value);
}

// As many bits an id as the largest needs, the lowest first; the last byte is filled with zeros.
void trace_writer::put_ids(const int32_t * experts, size_t n, int n_expert) {
    int width = 0;
    while ((1 << width) < n_expert) {
        width++;
    }
    uint32_t gathered = 0;
    int      held     = 0;  // bits in it
    for (size_t i = 0; i < n; i++) {
        gathered |= (uint32_t) experts[i] << held;
        for (held += width; held >= 8; held -= 8, gathered >>= 8) {
            pending_.push_back((uint8_t) (gathered & 255));
        }
    }
    if (held > 0) {
        pending_.push_back((uint8_t) gathered);
    }
}

void trace_writer::put_u16(uint16_t value) {
    pending_.push_back((uint8_t) (value & 255));
    pending_.push_back((uint8_t) (value >> 8));
}

bool trace_writer::write_out() {
    const size_t written = fwrite(pending_.data(), 1, pending_.size(), file_);
    bytes_ += written;
    if (written != pending_.size()) {
        fail(strerror(errno));
        return false;
    }
    pending_.clear();
    return true;
}

void trace_writer::fail(const std::string & why) {
    GGML_LOG_WARN("ggml_hot: the trace ends here: %s\n", why.c_str());
    error_ = "the trace ended early: " + why;
    fclose(file_);
    file_ = nullptr;
    pending_.clear();
}

// the whole process

std::string routing_trace::start(const std::string & path, bool with_weights) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!writer_.on()) {
        layers_.clear();
        first_.clear();
        lone_.clear();
        batch_is_known_ = false;  // what is left of the batch at work is no whole token
    }
    return writer_.start(path, with_weights);
}

std::string routing_trace::stop() {
    std::lock_guard<std::mutex> lock(mutex_);
    return writer_.stop();
}

bool routing_trace::on() {
    std::lock_guard<std::mutex> lock(mutex_);
    return writer_.on();
}

bool routing_trace::with_weights() {
    std::lock_guard<std::mutex> lock(mutex_);
    return writer_.on() && writer_.with_weights();
}

void routing_trace::facts(bool & is_on, uint64_t & tokens, uint64_t & bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    is_on  = writer_.on();
    tokens = writer_.tokens();
    bytes  = writer_.bytes();
}

void routing_trace::begin_batch() {
    std::lock_guard<std::mutex> lock(mutex_);
    keep_lone();
    batch_is_known_ = batch_is_new_ = true;
}

void routing_trace::block(const void * layer, const std::string & name, int n_expert, int n_tokens, int n_used, const int32_t * experts,
                          std::vector<float> weights) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!writer_.on() || !batch_is_known_) {
        return;
    }
    held_block b{layer, name, n_expert, n_tokens, n_used, {experts, experts + (size_t) n_tokens * n_used}, std::move(weights)};
    if (batch_is_new_) {
        first_.push_back(std::move(b));
        batch_is_new_ = false;
        return;
    }
    if (!first_.empty()) {
        write(first_.front());
        first_.clear();
    }
    write(b);
}

// The block that was the only one of its batch.
void routing_trace::keep_lone() {
    for (held_block & b : first_) {
        const auto known = layers_.find(b.layer);
        if (known != layers_.end()) {
            write_lone(b, known->second);
        } else {
            lone_.push_back(std::move(b));
        }
    }
    first_.clear();
    if (lone_.size() > most_lone) {
        lone_.pop_front();  // a model whose only layer with experts is its last
    }
}

void routing_trace::write_lone(const held_block & b, int number) {
    writer_.lone_block(number, b.name, b.n_expert, b.n_tokens, b.n_used, b.experts.data(), b.weights.empty() ? nullptr : b.weights.data());
}

void routing_trace::write(const held_block & b) {
    const auto [at, is_new] = layers_.try_emplace(b.layer, (int) layers_.size());
    const int number = at->second;
    if (is_new) {
        for (auto lone = lone_.begin(); lone != lone_.end();) {
            if (lone->layer == b.layer) {
                write_lone(*lone, number);
                lone = lone_.erase(lone);
            } else {
                ++lone;
            }
        }
    }
    writer_.block(number, b.name, b.n_expert, b.n_tokens, b.n_used, b.experts.data(), b.weights.empty() ? nullptr : b.weights.data());
}

}  // namespace hot
