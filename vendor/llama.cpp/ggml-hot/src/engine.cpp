#include "engine.h"

#include "missed_rows.h"
#include "stand_in.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>

namespace hot {

static double now_us() {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

engine::engine(const settings & config, ggml_backend_dev_t device, common & shared)
    : config_(config), device_(device), shared_(shared), gpu_(device), cache_(config_, shared.known, gpu_, stats_), stream_(gpu_, cache_, config_.stream_bytes, stats_.stream) {
    stats_.device = ggml_backend_dev_name(device);
    use_threads(1);
}

engine::~engine() {
    gpu_.wait();
}

void engine::begin_batch(int n_threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    told_of_batches_ = true;
    use_threads(n_threads);
    start_batch();
}

void engine::set_n_threads(int n_threads) {
    std::lock_guard<std::mutex> lock(mutex_);
    use_threads(n_threads);
}

void engine::use_threads(int n_threads) {
    if (n_threads != n_threads_) {
        n_threads_ = n_threads;
        // a cache device that computes on the CPU must not bring more threads than the user allows
        ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(device_);
        if (auto set = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads")) {
            set(gpu_.own(), n_threads);
        }
    }
}

void engine::start_batch() {
    stream_.settle();
    cache_.begin_batch(++batch_);
    shared_.trace.begin_batch();
}

void engine::release(const void * owner) {
    std::lock_guard<std::mutex> lock(mutex_);
    gpu_.wait();
    stream_.forget();
    cache_.release(owner);
}

void engine::set(const knobs & values) {
    std::lock_guard<std::mutex> lock(mutex_);
    const knobs old = config_;
    static_cast<knobs &>(config_) = values;
    if (old.policy != values.policy || old.interval != values.interval || old.hysteresis != values.hysteresis) {
        cache_.use_policy();
    }
    if (old.k != values.k || old.budget != values.budget || old.shared != values.shared) {
        stream_.settle();
        cache_.apportion();
    }
}

void engine::reset() {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.reset();
}

engine_stats engine::snapshot() {
    std::lock_guard<std::mutex> lock(mutex_);
    engine_stats now = stats_;
    now.working = cache_.working();
    now.working.host_bytes += staging_size_ + stream_.host_bytes();
    return now;
}

profile engine::uses() {
    std::lock_guard<std::mutex> lock(mutex_);
    return cache_.uses();
}

bool engine::on_device(const ggml_tensor * t) const {
    return buffer_of(t) && ggml_backend_dev_supports_buft(device_, buffer_of(t)->buft);
}

ggml_status engine::compute(ggml_cgraph * graph, const void * owner, ggml_backend_t stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    gpu_.use(stream);
    stats_.in_order = gpu_.in_order();
    running_.layer = nullptr;
    ggml_status status;
    std::string problem = "the GPU did not compute it";
    try {
        status = is_streamed(graph) ? stream_blocks(graph) : compute_blocks(graph, owner);
    } catch (const std::exception & error) {  // out of host memory, most likely
        status  = GGML_STATUS_FAILED;
        problem = error.what();
    }
    if (status != GGML_STATUS_SUCCESS) {
        running_.layer = nullptr;
        ggml_backend_synchronize(gpu_.stream());
        status = compute_by_node(graph, problem);
    }
    return status;
}

// Whether its batch is too large for the cache, and all that the GPU must reach is there but for the experts.
bool engine::is_streamed(const ggml_cgraph * graph) const {
    const int first = find_product(graph, 0);
    if (first == graph->n_nodes || config_.stream_from == 0) {
        return false;
    }
    const int64_t n_tokens = graph->nodes[first]->src[2]->ne[1];
    return n_tokens > config_.bypass && n_tokens >= config_.stream_from;
}

ggml_status engine::stream_blocks(ggml_cgraph * graph) {
    const auto reachable = [&](const ggml_tensor * node) {
        bool all = on_device(node);
        for (int s = 0; s < GGML_MAX_SRC && node->src[s]; s++) {
            all = all && (s == expert_source(node) || on_device(node->src[s]));
        }
        return is_view(node) || all;
    };
    if (!std::all_of(graph->nodes, graph->nodes + graph->n_nodes, reachable)) {
        ggml_backend_synchronize(gpu_.stream());
        return compute_by_node(graph, "a step of a large batch reads or writes memory that the GPU cannot");
    }
    if (!stream_.reserve(graph)) {
        shared_.no_room_to_stream = true;
        ggml_backend_synchronize(gpu_.stream());
        return compute_by_node(graph, "VRAM is too short to stream experts: large batches go the usual way from now on");
    }
    const ggml_status status = stream_.compute(graph);
    gpu_.finish();
    return status;
}

ggml_status engine::compute_blocks(ggml_cgraph * graph, const void * owner) {
    ggml_status status = GGML_STATUS_SUCCESS;
    const auto  keep   = [&](ggml_status next) { status = status == GGML_STATUS_SUCCESS ? next : status; };
    for (int at = 0; at < graph->n_nodes && status == GGML_STATUS_SUCCESS;) {
        const int begin = find_product(graph, at);
        keep(compute_rest(graph, at, begin, "a step beside a block reads or writes memory that the GPU cannot"));
        if (begin == graph->n_nodes) {
            break;
        }
        moe_block   block;
        std::string problem = find_moe_block(graph, begin, block);
        if (problem.empty() && !on_device(block.out)) {
            problem = "the block's result lies in host memory";
        }
        if (problem.empty() && block.n_tokens == 0) {
            at = block.end;  // the last layer of a batch of which no result is wanted
        } else if (problem.empty()) {
            finish_block();
            keep(compute_block(graph, std::move(block), owner));
            at = running_.block.end;
        } else {
            const int end = std::max(begin + 1, find_product(graph, begin + 1));
            keep(compute_rest(graph, begin, end, problem));
            at = end;
        }
    }
    if (running_.layer) {
        finish_block();
    } else {
        gpu_.finish();
    }
    return status;
}

// Nodes that belong to no block: as they stand on the GPU, or on the CPU where they touch memory that the GPU cannot.
ggml_status engine::compute_rest(ggml_cgraph * graph, int begin, int end, const std::string & reason) {
    ggml_cgraph rest = ggml_graph_view(graph, begin, end);
    const bool nothing = std::all_of(rest.nodes, rest.nodes + rest.n_nodes, [](const ggml_tensor * t) { return is_view(t); });
    if (nothing) {
        return GGML_STATUS_SUCCESS;
    }
    const auto on_gpu = [&](const ggml_tensor * node) {
        bool all = on_device(node);
        for (int s = 0; s < GGML_MAX_SRC && node->src[s]; s++) {
            all = all && on_device(node->src[s]);
        }
        return is_view(node) || (all && ggml_backend_dev_supports_op(device_, node));
    };
    if (std::all_of(rest.nodes, rest.nodes + rest.n_nodes, on_gpu)) {
        return ggml_backend_graph_compute_async(gpu_.stream(), &rest);
    }
    ggml_backend_synchronize(gpu_.stream());
    return compute_by_node(&rest, reason);
}

ggml_status engine::compute_by_node(ggml_cgraph * graph, const std::string & reason) {
    int computed = 0;
    const ggml_status status = shared_.cold.compute_by_node(graph, n_threads_, computed);
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
    gpu_.wait();  // copies from the old one
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

// Staging, in this order: cold rows | inputs | expert numbers. Each part is as large as the block can need.
engine::host_input engine::fetch_input(const moe_block & block) {
    const size_t rows_bytes = GGML_PAD(ggml_nbytes(block.out), 64);
    size_t need = rows_bytes + GGML_PAD(ggml_nbytes(block.ids), 64);
    for (const ggml_tensor * input : block.inputs) {
        need += GGML_PAD(ggml_nbytes(input), 64);
    }
    reserve_staging(need);
    uint8_t * at = staging_data_ + rows_bytes;
    if (std::any_of(block.inputs.begin(), block.inputs.end(), in_host_memory)) {
        gpu_.wait();  // copies from the place that they go to
    }
    const auto fetch = [&](const ggml_tensor * t) {
        uint8_t * place = at;
        at += GGML_PAD(ggml_nbytes(t), 64);
        if (in_host_memory(t)) {
            memcpy(place, t->data, ggml_nbytes(t));
        } else {
            const stand_in on_gpu(t, gpu_.buffer_type());
            ggml_backend_tensor_get_async(gpu_.stream(), &on_gpu.tensor, place, 0, ggml_nbytes(t));
        }
        return place;
    };
    host_input in;
    for (const ggml_tensor * input : block.inputs) {
        in.inputs.push_back((const float *) fetch(input));
    }
    uint8_t * ids = fetch(block.ids);
    ggml_backend_synchronize(gpu_.stream());

    // ids are rows of a wider sorted matrix: close the gaps in place
    const size_t row_bytes = (size_t) block.n_used * sizeof(int32_t);
    for (int64_t t = 1; t < block.n_tokens; t++) {
        memmove(ids + (size_t) t * row_bytes, ids + (size_t) t * block.ids->nb[1], row_bytes);
    }
    in.ids = (const int32_t *) ids;
    return in;
}

// Inputs that lie in host memory go to the GPU; the others are read where they are.
void engine::send_inputs(const moe_block & block, const hot_graph & hot, const host_input & in) {
    ggml_backend_tensor_set_async(gpu_.stream(), hot.ids, slot_ids_.data(), 0, slot_ids_.size() * sizeof(int32_t));
    for (size_t k = 0; k < hot.inputs.size(); k++) {
        if (!on_device(block.inputs[k])) {
            ggml_backend_tensor_set_async(gpu_.stream(), hot.inputs[k], in.inputs[k], 0, ggml_nbytes(hot.inputs[k]));
        }
    }
}

// Cold rows go to their places among the hot ones, one copy for each run of neighbours.
void engine::send_rows(const moe_block & block, const std::vector<int> & positions, const float * rows) {
    stand_in      out(block.out, gpu_.buffer_type());
    const size_t  row_bytes = block.out->nb[1];
    const int64_t width     = block.out->ne[0];
    for (size_t i = 0; i < positions.size();) {
        size_t n = 1;
        while (i + n < positions.size() && positions[i + n] == positions[i] + (int) n) {
            n++;
        }
        ggml_backend_tensor_set_async(gpu_.stream(), &out.tensor, rows + (int64_t) i * width, (size_t) positions[i] * row_bytes, n * row_bytes);
        i += n;
    }
}

// Copies some of the missed experts to the GPU, which computes them with the hits. Returns their bytes.
size_t engine::fetch_misses(const moe_block & block, cached_layer & layer, const std::vector<int> & missed) {
    if (config_.fetch == 0 || !layer.fetchable) {
        return 0;
    }
    const int  n_missed = (int) missed.size();
    const bool probing  = cache_.link_is_free() && split_.wants_a_fetch();  // behind uploads it would take longer
    const int  n        = config_.fetch > 0 ? config_.fetch : std::max(split_.fetches(n_missed, layer.slot_bytes()), probing ? 1 : 0);
    if (n == 0) {
        return 0;
    }
    std::vector<bool> in_use(layer.slots.n_slots(), false);
    for (int32_t slot : slot_ids_) {
        if (slot >= 0) {
            in_use[slot] = true;
        }
    }
    const double t0 = now_us();
    const std::vector<int> fetched = cache_.fetch(layer, missed, in_use, n);
    measured_ = probing && !fetched.empty();
    if (measured_) {
        ggml_backend_synchronize(gpu_.stream());
        split_.fetch_took(fetched.size() * layer.slot_bytes(), now_us() - t0);
    }
    for (int64_t p = 0; p < block.n_rows() && !fetched.empty(); p++) {
        slot_ids_[p] = layer.slots.slot_of[running_.in.ids[p]];
    }
    return fetched.size() * layer.slot_bytes();
}

ggml_status engine::compute_block(ggml_cgraph * graph, moe_block && found, const void * owner) {
    const double t0 = now_us();
    stream_.settle();  // its copies read slots
    running_ = {graph, std::move(found), nullptr, {}, 0, {}, t0};
    const moe_block & block = running_.block;
    if (!told_of_batches_ && cache_.seen_in_this_batch(block)) {
        start_batch();
    }
    cached_layer & layer = cache_.find(block, owner);
    running_.layer = &layer;
    running_.in    = fetch_input(block);
    const host_input & in = running_.in;
    const int n_rows = (int) block.n_rows();

    hot_graph * hot = cache_.graph_for(layer, block);
    slot_ids_.assign(n_rows, -1);
    std::vector<int> missed;
    for (int p = 0; p < n_rows; p++) {
        slot_ids_[p] = hot ? layer.slots.slot_of[in.ids[p]] : -1;
        if (slot_ids_[p] < 0) {
            missed.push_back(in.ids[p]);
        }
    }
    running_.n_missed = missed.size();
    std::sort(missed.begin(), missed.end());
    missed.erase(std::unique(missed.begin(), missed.end()), missed.end());
    cache_.count(layer, block, in.ids);
    cache_.plan(layer, missed);
    measured_ = false;
    const size_t fetched_bytes = hot && !missed.empty() ? fetch_misses(block, layer, missed) : 0;

    std::vector<int>     cold_positions;
    std::vector<int32_t> cold_experts;
    for (int p = 0; p < n_rows; p++) {
        if (slot_ids_[p] < 0) {
            cold_positions.push_back(p);
            cold_experts.push_back(in.ids[p]);
        }
    }
    if ((int) cold_positions.size() < n_rows && !fill_missed_positions(slot_ids_, layer.slots, block)) {
        // the cache is still filling, or smaller than one token's choice
        cold_experts.assign(in.ids, in.ids + n_rows);
        cold_positions.resize(n_rows);
        std::iota(cold_positions.begin(), cold_positions.end(), 0);
        running_.n_missed = (size_t) n_rows;
    }
    ggml_status status = GGML_STATUS_SUCCESS;
    const auto  keep   = [&](ggml_status next) { status = status == GGML_STATUS_SUCCESS ? next : status; };
    if ((int) cold_positions.size() < n_rows) {
        const double t = now_us();
        send_inputs(block, *hot, in);
        keep(ggml_backend_graph_compute_async(gpu_.stream(), hot->graph));
        if (measured_) {
            ggml_backend_synchronize(gpu_.stream());
            split_.hits_took(now_us() - t);
        }
    }
    const double t1 = now_us();
    float * rows = (float *) staging_data_;
    if (!cold_positions.empty()) {
        keep(shared_.cold.compute(block, n_threads_, in.inputs, cold_positions, cold_experts, rows));
    }
    const double t2 = now_us();
    if (block.n_tokens == 1 && !cold_positions.empty()) {
        split_.cpu_took(cold_positions.size() * layer.slot_bytes(), t2 - t1);
    }
    send_rows(block, cold_positions, rows);
    running_.time_us.submit = t1 - t0;
    running_.time_us.cold   = t2 - t1;
    running_.cold_done_us   = t2;
    stats_.layers[layer.index].fetched_bytes += fetched_bytes;
    return status;
}

// Waits for the block that was started last, and for what stands behind it; then its slots and the staging may change.
void engine::finish_block() {
    if (!running_.layer) {
        return;
    }
    gpu_.finish();
    const double t3 = now_us();
    const moe_block & block = running_.block;
    cached_layer &    layer = *running_.layer;
    cache_.start_uploads(layer);
    trace_block();

    const uint64_t misses = running_.n_missed, hits = (uint64_t) block.n_rows() - misses;
    running_.time_us.wait = t3 - running_.cold_done_us;
    running_.time_us.swap = now_us() - t3;
    layer_stats & counts = stats_.layers[layer.index];
    counts.hits += hits;
    counts.misses += misses;
    counts.blocks++;
    counts.time_us.add(running_.time_us);
    stats_.tokens += layer.index == 0 ? (uint64_t) block.n_tokens : 0;
    if (block.n_tokens > 1) {
        stats_.multi.blocks++;
        stats_.multi.tokens += (uint64_t) block.n_tokens;
        stats_.multi.hits += hits;
        stats_.multi.misses += misses;
    }
    running_.layer = nullptr;
}

// The router's weights are what the block's result is multiplied by, where that stands behind it.
void engine::trace_block() {
    if (!shared_.trace.on()) {
        return;
    }
    const moe_block & block = running_.block;
    std::vector<float> weights;
    const bool wanted = shared_.trace.with_weights();
    if (wanted) {
        gpu_.wait();
    }
    for (int i = block.end; wanted && weights.empty() && i < running_.graph->n_nodes; i++) {
        const ggml_tensor * node = running_.graph->nodes[i];
        if (node->op == GGML_OP_MUL && node->src[0] == block.out && ggml_nelements(node->src[1]) == block.n_rows() &&
            ggml_is_contiguous(node->src[1])) {
            weights.resize((size_t) block.n_rows());
            ggml_backend_tensor_get(node->src[1], weights.data(), 0, ggml_nbytes(node->src[1]));
        }
    }
    const ggml_tensor * first = block.weights[0].tensor;
    shared_.trace.block(first->data, first->name, (int) block.n_expert, (int) block.n_tokens, (int) block.n_used, running_.in.ids,
                        std::move(weights));
}

}  // namespace hot
