#include "engine.h"

#include "fallback.h"
#include "stand_in.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>
#include <numeric>

namespace hot {

static double now_us() {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

engine::engine(const settings & config, ggml_backend_dev_t device)
    : config_(config), device_(device), gpu_(ggml_backend_dev_init(device, nullptr)), copier_(ggml_backend_dev_init(device, nullptr)),
      gpu_buft_(ggml_backend_dev_buffer_type(device)), cache_(config_, gpu_.get(), copier_.get()) {
    stats_.cache_device = ggml_backend_dev_name(device);
    stats_.k            = config.k;
    stats_.interval     = config.interval;
    stats_.bypass       = config.bypass;
    GGML_LOG_INFO("ggml_hot: device ready: K=%d interval=%d bypass=%d cache device=%s\n", config.k, config.interval, config.bypass,
                  stats_.cache_device.c_str());
}

engine::~engine() {
    ggml_backend_synchronize(gpu_.get());
    ggml_backend_synchronize(copier_.get());
}

void engine::set_n_threads(int n) {
    std::lock_guard<std::mutex> lock(mutex_);
    cold_.set_n_threads(n);
    // a cache device that computes on the CPU must not bring more threads than the user allows
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device_);
    if (auto set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads")) {
        set(gpu_.get(), n);
    }
}

stats engine::snapshot() {
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_;
}

ggml_status engine::compute(ggml_cgraph * graph) {
    std::lock_guard<std::mutex> lock(mutex_);
    moe_block block;
    const std::string problem = find_block(graph, block);
    return problem.empty() ? compute_block(graph, block) : fall_back(graph, problem);
}

// A whole block whose tail, too, can run on the GPU as it stands.
std::string engine::find_block(ggml_cgraph * graph, moe_block & block) {
    std::string problem = find_moe_block(graph, block);
    const auto on_device = [&](const ggml_tensor * t) {
        return buffer_of(t) && ggml_backend_dev_supports_buft(device_, buffer_of(t)->buft);
    };
    for (int i = block.tail; problem.empty() && i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        for (int s = 0; s < GGML_MAX_SRC && node->src[s]; s++) {
            if (!on_device(node->src[s])) {
                problem = "the block's sum reads host memory";
            }
        }
    }
    if (problem.empty() && (!on_device(block.out) || !on_device(block.x))) {
        problem = "the block's activations lie in host memory";
    }
    return problem;
}

ggml_status engine::fall_back(ggml_cgraph * graph, const std::string & reason) {
    ggml_backend_synchronize(gpu_.get());
    int computed = 0;
    const ggml_status status = compute_on_cpu(cold_.cpu(), graph, computed);
    stats_.fallback_nodes += (uint64_t) computed;
    auto & reasons = stats_.fallback_reasons;
    if (computed > 0 && std::find(reasons.begin(), reasons.end(), reason) == reasons.end()) {
        reasons.push_back(reason);
        GGML_LOG_WARN("ggml_hot: a graph goes node by node through the CPU: %s\n", reason.c_str());
    }
    return status;
}

void engine::reserve_staging(size_t bytes) {
    if (bytes <= staging_size_) {
        return;
    }
    staging_.reset();
    ggml_backend_buffer_type_t pinned = ggml_backend_dev_host_buffer_type(device_);
    staging_.reset(pinned ? ggml_backend_buft_alloc_buffer(pinned, bytes) : nullptr);
    if (staging_) {
        staging_data_ = (uint8_t *) ggml_backend_buffer_get_base(staging_.get());
    } else {
        plain_staging_.resize(bytes);
        staging_data_ = plain_staging_.data();
    }
    staging_size_ = bytes;
}

// Staging, in this order: cold rows | input | expert numbers. Each part is as large as the block can need.
engine::host_input engine::fetch_input(const moe_block & block) {
    const size_t rows_bytes = GGML_PAD(ggml_nbytes(block.out), 64);
    const size_t x_bytes    = GGML_PAD(ggml_nbytes(block.x), 64);
    reserve_staging(rows_bytes + x_bytes + ggml_nbytes(block.ids) + 64);
    uint8_t * x   = staging_data_ + rows_bytes;
    uint8_t * ids = x + x_bytes;
    const stand_in x_on_gpu(block.x, gpu_buft_);
    ggml_backend_tensor_get_async(gpu_.get(), &x_on_gpu.tensor, x, 0, ggml_nbytes(block.x));
    if (in_host_memory(block.ids)) {
        memcpy(ids, block.ids->data, ggml_nbytes(block.ids));
    } else {
        const stand_in ids_on_gpu(block.ids, gpu_buft_);
        ggml_backend_tensor_get_async(gpu_.get(), &ids_on_gpu.tensor, ids, 0, ggml_nbytes(block.ids));
    }
    ggml_backend_synchronize(gpu_.get());

    // ids are rows of a wider sorted matrix: close the gaps in place
    for (int64_t t = 1; t < block.n_tokens; t++) {
        memmove(ids + (size_t) (t * block.n_used) * sizeof(int32_t), ids + (size_t) t * block.ids->nb[1], (size_t) block.n_used * sizeof(int32_t));
    }
    return {(const float *) x, (const int32_t *) ids};
}

// Cold rows go to their places among the hot ones, one copy for each run of neighbours.
void engine::send_rows(const moe_block & block, const std::vector<int> & positions, const float * rows) {
    stand_in      out(block.out, gpu_buft_);
    const size_t  row_bytes = block.out->nb[1];
    const int64_t width     = block.out->ne[0];
    for (size_t i = 0; i < positions.size();) {
        size_t n = 1;
        while (i + n < positions.size() && positions[i + n] == positions[i] + (int) n) {
            n++;
        }
        ggml_backend_tensor_set_async(gpu_.get(), &out.tensor, rows + (int64_t) i * width, (size_t) positions[i] * row_bytes, n * row_bytes);
        i += n;
    }
}

// The graph on the GPU has a fixed shape, so a missed position (-1) must name some resident expert; its row is
// overwritten later. Within a token each names another one: some kernels keep one row for each expert and token, and
// some treat the rows of one expert together and round differently. Where too few are resident, a hit is named again
// if the kernels allow that (`may_repeat`), else the result is false.
static bool fill_missed_positions(std::vector<int32_t> & slot_ids, const slot_map & slots, int n_used, bool may_repeat) {
    const int n_slots = (int) slots.expert_of.size();
    for (size_t token = 0; token < slot_ids.size(); token += n_used) {
        const auto begin = slot_ids.begin() + (ptrdiff_t) token;
        std::vector<bool> taken(n_slots, false);
        std::for_each(begin, begin + n_used, [&](int32_t slot) {
            if (slot >= 0) {
                taken[slot] = true;
            }
        });
        int next = 0;
        for (auto position = begin; position != begin + n_used; ++position) {
            if (*position >= 0) {
                continue;
            }
            while (next < n_slots && (taken[next] || slots.expert_of[next] < 0)) {
                next++;
            }
            if (next < n_slots) {
                *position = next++;
            } else if (may_repeat) {
                *position = (int32_t) (std::find(taken.begin(), taken.end(), true) - taken.begin());
            } else {
                return false;
            }
        }
    }
    return true;
}

// A single token over quantized weights goes through vector kernels, row by row, on every back-end: a slot may be named
// twice. Matrix kernels keep one row for each expert and token.
static bool rows_are_independent(const moe_block & block) {
    return block.n_tokens == 1 && std::all_of(block.weights.begin(), block.weights.end(), [](const expert_tensor & w) {
        return w.dim != 2 || ggml_is_quantized(w.tensor->type);
    });
}

ggml_status engine::compute_block(ggml_cgraph * graph, const moe_block & block) {
    const double t0 = now_us();
    cached_layer & layer = cache_.find(block, stats_);
    const host_input in  = fetch_input(block);
    const int n_rows     = (int) (block.n_used * block.n_tokens);

    hot_graph * hot = cache_.graph_for(layer, block);
    if (hot) {
        cache_.publish(layer);
    }
    slot_ids_.assign(n_rows, -1);
    for (int p = 0; hot && p < n_rows; p++) {
        slot_ids_[p] = layer.slots->slot_of[in.ids[p]];
    }
    std::vector<int>     cold_positions;
    std::vector<int32_t> cold_experts;
    for (int p = 0; p < n_rows; p++) {
        if (slot_ids_[p] < 0) {
            cold_positions.push_back(p);
            cold_experts.push_back(in.ids[p]);
        }
    }
    if ((int) cold_positions.size() < n_rows &&
        !fill_missed_positions(slot_ids_, *layer.slots, (int) block.n_used, rows_are_independent(block))) {
        // the cache is still filling, or smaller than one token's choice
        cold_experts.assign(in.ids, in.ids + n_rows);
        cold_positions.resize(n_rows);
        std::iota(cold_positions.begin(), cold_positions.end(), 0);
    }
    const int n_cold = (int) cold_positions.size();
    ggml_status status = GGML_STATUS_SUCCESS;
    const auto  keep   = [&](ggml_status next) { status = status == GGML_STATUS_SUCCESS ? next : status; };
    if (n_cold < n_rows) {
        ggml_backend_tensor_set_async(gpu_.get(), hot->ids, slot_ids_.data(), 0, slot_ids_.size() * sizeof(int32_t));
        keep(ggml_backend_graph_compute_async(gpu_.get(), hot->graph));
    }
    const double t1 = now_us();
    float * rows = (float *) staging_data_;
    if (n_cold > 0) {
        keep(cold_.compute(block, in.x, cold_positions, cold_experts, rows));
    }
    const double t2 = now_us();
    send_rows(block, cold_positions, rows);
    ggml_cgraph tail = ggml_graph_view(graph, block.tail, graph->n_nodes);
    if (tail.n_nodes > 0) {
        keep(ggml_backend_graph_compute_async(gpu_.get(), &tail));
    }
    // Finish here: the scheduler waits for us only when the next split has no inputs to copy.
    ggml_backend_synchronize(gpu_.get());
    const double t3 = now_us();

    layer_stats & counts = stats_.layers[layer.index];
    if (hot) {
        for (int64_t t = 0; t < block.n_tokens; t++) {
            layer.chooser->count(in.ids + t * block.n_used, (int) block.n_used);
        }
        std::vector<int> missed;  // a resident expert may have been computed on the CPU, too, but needs no second slot
        std::copy_if(cold_experts.begin(), cold_experts.end(), std::back_inserter(missed), [&](int e) { return layer.slots->slot_of[e] < 0; });
        std::sort(missed.begin(), missed.end());
        missed.erase(std::unique(missed.begin(), missed.end()), missed.end());
        cache_.start_uploads(layer, layer.chooser->plan(*layer.slots, missed), stats_);
    }
    counts.hits += (uint64_t) (n_rows - n_cold);
    counts.misses += (uint64_t) n_cold;
    stats_.tokens += layer.index == 0 ? (uint64_t) block.n_tokens : 0;
    stats_.blocks++;
    stats_.time_us.submit += t1 - t0;
    stats_.time_us.cold += t2 - t1;
    stats_.time_us.wait += t3 - t2;
    stats_.time_us.swap += now_us() - t3;
    return status;
}

}  // namespace hot
