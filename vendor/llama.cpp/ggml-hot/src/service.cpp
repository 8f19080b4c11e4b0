#include "service.h"

#include "ggml-impl.h"

#include <unistd.h>

namespace hot {

// A process that ends without closing its contexts may have taken its GPU down already: nothing is freed then.
service::~service() {
    control_.reset();
    for (auto & [device, worker] : engines_) {
        (void) worker.release();
    }
    (void) (engines_.empty() ? nullptr : shared_.release());
}

// contexts

context * service::open(ggml_backend_dev_t cache, ggml_backend_t stream) {
    std::lock_guard<std::mutex> alone(lifetime_);
    std::lock_guard<std::mutex> lock(mutex_);
    if (contexts_++ == 0) {
        load_profile_and_trace();
        if (!config_.socket_path.empty()) {
            control_ = std::make_unique<control_socket>(config_.socket_path, *this);
        }
    }
    GGML_LOG_INFO("ggml_hot: device ready: K=%d MiB=%zu policy=%s interval=%d bypass=%d cache device=%s\n", config_.k, config_.budget >> 20,
                  policy_name(config_.policy), config_.interval, config_.bypass, ggml_backend_dev_name(cache));
    return new context{cache, stream};
}

void service::close(context * c) {
    std::lock_guard<std::mutex> alone(lifetime_);
    if (!closing_) {
        std::lock_guard<std::mutex> lock(mutex_);
        at_close_ = stats_locked();
        closing_  = true;
    }
    if (c->worker) {
        c->worker->release(c);
    }
    delete c;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (--contexts_ > 0) {
            return;
        }
    }
    control_.reset();  // its thread may be waiting for mutex_
    std::lock_guard<std::mutex> lock(mutex_);
    if (!config_.stats_path.empty()) {
        write_file(config_.stats_path, at_close_);
    }
    if (!config_.profile_path.empty() && !is_imatrix(config_.profile_path)) {
        const std::string problem = save_profile_locked(config_.profile_path);
        if (!problem.empty()) {
            GGML_LOG_WARN("ggml_hot: %s\n", problem.c_str());
        }
    }
    engines_.clear();
    shared_.reset();
}

void service::load_profile_and_trace() {
    shared_ = std::make_unique<common>();
    std::string problem;
    if (!config_.profile_path.empty() && access(config_.profile_path.c_str(), F_OK) == 0) {
        problem = load_profile(config_.profile_path, shared_->known);
    } else if (config_.policy == policy_kind::fixed) {
        problem = "policy static without a profile: the first experts that are missed stay";
    }
    if (!problem.empty()) {
        GGML_LOG_WARN("ggml_hot: %s\n", problem.c_str());
    }
    if (!config_.trace_path.empty()) {
        problem = shared_->trace.start(config_.trace_path, false);
        if (!problem.empty()) {
            GGML_LOG_WARN("ggml_hot: %s\n", problem.c_str());
        }
    }
}

ggml_status service::compute(context & c, ggml_cgraph * graph) {
    closing_ = false;  // others go on: what they count is not in at_close_
    if (!c.worker) {
        std::lock_guard<std::mutex> lock(mutex_);
        std::unique_ptr<engine> & worker = engines_[c.cache];
        if (!worker) {
            worker = std::make_unique<engine>(config_, c.cache, *shared_);
        }
        c.worker = worker.get();
        c.worker->set_n_threads(c.n_threads);
    }
    return c.worker->compute(graph, &c, c.stream);
}

// Asked by the scheduler for a context that is open.
bool service::takes(int64_t n_tokens) const {
    const bool streams = config_.stream_from > 0 && n_tokens >= config_.stream_from && !(shared_ && shared_->no_room_to_stream);
    return n_tokens <= bypass_ || streams;
}

void service::begin_batch(context & c, int n_threads) {
    c.n_threads = n_threads;
    if (c.worker) {
        c.worker->begin_batch(n_threads);
    }
}

// what the control socket asks for

std::string service::stats_locked() {
    report r;
    r.enabled = enabled_;
    r.set     = config_;
    for (const auto & [device, worker] : engines_) {
        r.engines.push_back(worker->snapshot());
    }
    if (shared_) {
        shared_->trace.facts(r.trace.on, r.trace.tokens, r.trace.bytes);
        r.cold_bytes = shared_->cold.memory_bytes();
    }
    r.vgpus = vgpu_snapshot();
    return to_json(r);
}

void service::save_stats() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!config_.stats_path.empty()) {
        write_file(config_.stats_path, stats_locked());
    }
}

std::string service::stats_json() {
    save_stats();
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_locked();
}

std::string service::set(const changes & what) {
    std::lock_guard<std::mutex> lock(mutex_);
    knobs & now = config_;
    if (what.k) {
        now.budget = 0;
    }
    now.k            = what.k.value_or(now.k);
    now.budget       = what.budget.value_or(now.budget);
    now.shared       = what.shared.value_or(now.shared);
    now.policy       = what.policy.value_or(now.policy);
    now.interval     = what.interval.value_or(now.interval);
    now.hysteresis   = what.hysteresis.value_or(now.hysteresis);
    now.bypass       = what.bypass.value_or(now.bypass);
    now.fetch        = what.fetch.value_or(now.fetch);
    now.upload_bytes = what.upload_bytes.value_or(now.upload_bytes);
    bypass_ = now.bypass;
    for (const auto & [device, worker] : engines_) {
        worker->set(now);
    }
    return "";
}

void service::reset() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto & [device, worker] : engines_) {
        worker->reset();
    }
    vgpu_reset_peak();
}

std::string service::save_profile_locked(const std::string & path) {
    profile p;
    for (const auto & [device, worker] : engines_) {
        p.merge(worker->uses());
    }
    // a short run, or one that computed nothing, must not wipe out what an earlier one learnt
    return p.empty() ? "" : hot::save_profile(path, p);
}

std::string service::save_profile(const std::string & path) {
    std::lock_guard<std::mutex> lock(mutex_);
    const std::string & where = path.empty() ? config_.profile_path : path;
    if (where.empty()) {
        return "no path: neither the request nor GGML_HOT_PROFILE names a file";
    }
    if (is_imatrix(where)) {
        return where + " is an imatrix and stays as it is: name another file";
    }
    return save_profile_locked(where);
}

std::string service::start_trace(const std::string & path, bool weights) {
    std::lock_guard<std::mutex> lock(mutex_);
    return shared_ ? shared_->trace.start(path, weights) : "no context is open";
}

std::string service::stop_trace() {
    std::lock_guard<std::mutex> lock(mutex_);
    return shared_ ? shared_->trace.stop() : "";
}

}  // namespace hot
