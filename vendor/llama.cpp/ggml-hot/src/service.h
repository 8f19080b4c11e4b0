// What the contexts of a process share: an engine for each GPU, the settings as they are now, the control socket, the
// profile and the trace. All of it lives from the first context to the last, so nothing outlasts a model.
#pragma once

#include "control.h"
#include "engine.h"
#include "settings.h"

#include <atomic>
#include <map>
#include <memory>
#include <mutex>

namespace hot {

// One llama_context's use of one device.
struct context {
    ggml_backend_dev_t cache;
    ggml_backend_t     stream    = nullptr;  // its own on that device, or null
    int                n_threads = 1;
    engine *           worker    = nullptr;  // made with the first graph: many contexts never compute one
};

class service final : public control_target {
public:
    explicit service(const settings & config) : enabled_(config.enabled()), config_(config), bypass_(config.bypass) {}

    ~service() override;

    context *   open(ggml_backend_dev_t cache, ggml_backend_t stream);
    void        close(context * c);
    ggml_status compute(context & c, ggml_cgraph * graph);
    void        begin_batch(context & c, int n_threads);
    bool        takes(int64_t n_tokens) const;  // a batch of so many tokens
    void        save_stats();

    std::string stats_json() override;
    std::string set(const changes & what) override;
    void        reset() override;
    std::string save_profile(const std::string & path) override;
    std::string start_trace(const std::string & path, bool weights) override;
    std::string stop_trace() override;

private:
    std::string stats_locked();
    std::string save_profile_locked(const std::string & path);
    void        load_profile_and_trace();

    const bool       enabled_;     // the device is registered, even if it has no slots at the moment
    settings         config_;      // with the knobs as they are now
    std::atomic<int> bypass_;      // read by the scheduler's questions, under no lock
    std::atomic<bool> closing_{false};  // contexts close one after the other, and nothing was computed since the first
    std::mutex       lifetime_;    // contexts come and go one at a time
    std::mutex       mutex_;       // everything below, and config_; never taken while an engine's own is held
    int              contexts_ = 0;
    std::string      at_close_;    // the statistics before the first of the closing contexts gave its slots back
    std::unique_ptr<common> shared_;
    std::map<ggml_backend_dev_t, std::unique_ptr<engine>> engines_;
    std::unique_ptr<control_socket> control_;
};

}  // namespace hot
