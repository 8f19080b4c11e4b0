// Re-enacts the expert cache on a recorded routing, with the device's own policies: which choices hit, what is uploaded.
// Does around a policy what src/expert_cache.cpp and src/engine.cpp do, without tensors, devices or threads.
// Compiled with src/policy.cpp into a small library; hottune/routing/replay.py calls it.
#include "../src/policy.h"

#include <algorithm>
#include <cstddef>
#include <deque>

namespace {

// [n_layers] each; for the caller's side of these three see hottune/routing/replay.py.
struct layer_facts {
    int32_t        n_expert;
    int32_t        n_slots;
    int32_t        phase;         // of the window
    int32_t        first_block;   // from which on the layer has slots, counting those that went through the cache from 0
    int64_t        expert_bytes;  // of one expert, all its weights
    const double * uses;          // [n_expert] from a profile, or null
};

struct cache_settings {
    int64_t upload_bytes;   // most that is uploaded for a batch
    int32_t policy;         // as hot_replay_policy numbers them
    int32_t interval;
    int32_t hysteresis;
    int32_t bypass;         // a block of more tokens does not go through the cache
    int32_t arrival;        // batches after which an upload may be read, at least 1
    int32_t rows_repeat;    // whether a single token's block may name a slot twice: quantized weights
    int32_t cold_tokens;    // the first tokens of a layer that are also counted apart
    int32_t most_used;      // experts a token, at most
};

struct layer_counts {
    int64_t hits, misses;            // choices
    int64_t cold_hits, cold_misses;  // of the first cold_tokens tokens
    int64_t uploads, evictions;
};

// A routing: block by block, in the order in which they were computed; layer 0 begins a batch. A layer of -1 - n means
// a block of layer n that is a batch of its own.
struct block {
    int32_t layer, tokens, used;  // used: experts a token
};
struct routing {
    int64_t         n_blocks;
    const block *   blocks;
    const int32_t * experts;  // token by token, one block after the other
};

struct cached_layer {
    const layer_facts &          facts;
    layer_counts &               counts;
    int64_t *                    misses_of;  // [most_used + 1] tokens with so many misses
    hot::slot_map                slots{0, 0};
    std::unique_ptr<hot::policy> chooser;
    std::vector<hot::swap>       waiting;
    int64_t                      blocks = 0, tokens = 0;  // that went through the cache
};

struct upload {
    int64_t arrives;  // with the beginning of this batch
    int     layer;
    int     slot;
    int64_t bytes;
};

class cache {
public:
    cache(const cache_settings & config, int n_layers, const layer_facts * facts, layer_counts * counts, int64_t * misses_of)
        : config_(config) {
        for (int i = 0; i < n_layers; i++) {
            layers_.push_back({facts[i], counts[i], misses_of + (ptrdiff_t) i * (config.most_used + 1), {facts[i].n_expert, 0}, {}, {}});
        }
    }

    void begin_batch() {
        batch_++;
        while (!uploads_.empty() && uploads_.front().arrives <= batch_) {
            layers_[uploads_.front().layer].slots.arrive(uploads_.front().slot);
            backlog_ -= uploads_.front().bytes;
            uploads_.pop_front();
        }
        upload_left_ = std::max<int64_t>(0, config_.upload_bytes - backlog_);
    }

    void compute(int index, int n_tokens, int n_used, const int32_t * experts) {
        cached_layer & layer = layers_[index];
        if (n_tokens > config_.bypass) {
            return;
        }
        if (layer.blocks++ == layer.facts.first_block) {
            seed(index);
        }
        const bool served = find_missed(layer, n_tokens, n_used, experts);
        missed_.clear();
        for (int t = 0; t < n_tokens; t++, layer.tokens++) {
            int misses = 0;
            for (int i = 0; i < n_used; i++) {
                const int expert = experts[(ptrdiff_t) t * n_used + i];
                if (layer.slots.slot_of[expert] < 0) {
                    missed_.push_back(expert);
                    misses++;
                }
            }
            misses = served ? misses : n_used;
            layer.misses_of[misses]++;
            layer.counts.misses += misses;
            layer.counts.hits += n_used - misses;
            if (layer.tokens < config_.cold_tokens) {
                layer.counts.cold_misses += misses;
                layer.counts.cold_hits += n_used - misses;
            }
            if (layer.chooser) {
                layer.chooser->count(experts + (ptrdiff_t) t * n_used, n_used);
            }
        }
        std::sort(missed_.begin(), missed_.end());
        missed_.erase(std::unique(missed_.begin(), missed_.end()), missed_.end());
        if (layer.chooser && layer.slots.n_slots() > 0) {
            plan_swaps(index);
        }
    }

private:
    // The layer gets its slots and its policy: expert_cache::apportion and seed.
    void seed(int index) {
        cached_layer &      layer = layers_[index];
        const layer_facts & facts = layer.facts;
        layer.slots = hot::slot_map(facts.n_expert, facts.n_slots);
        hot::policy_options options{(hot::policy_kind) config_.policy, facts.n_expert, config_.interval, config_.hysteresis, facts.phase, {}};
        if (facts.uses) {
            options.uses.assign(facts.uses, facts.uses + facts.n_expert);
        }
        layer.chooser = hot::make_policy(options);
        if (options.uses.empty() || facts.n_slots == 0) {
            return;
        }
        layer.waiting = layer.chooser->plan(layer.slots, {});
        if (options.kind == hot::policy_kind::fixed) {
            for (const hot::swap & s : layer.waiting) {
                layer.slots.reserve(s.expert, s.slot);
                layer.slots.arrive(s.slot);
                layer.counts.uploads++;
            }
            layer.waiting.clear();
        }
    }

    // Whether any choice can be served from a slot. The GPU computes a place for every choice; where one is missed, any
    // other resident expert stands in, which must exist: src/missed_rows.cpp.
    bool find_missed(const cached_layer & layer, int n_tokens, int n_used, const int32_t * experts) const {
        const hot::slot_map & slots = layer.slots;
        if (slots.n_slots() == 0) {
            return false;
        }
        if (n_tokens == 1 && config_.rows_repeat) {
            return true;
        }
        const auto n_resident = std::count_if(slots.expert_of.begin(), slots.expert_of.end(), [](int expert) { return expert >= 0; });
        for (int t = 0; t < n_tokens; t++) {
            const int32_t * row = experts + (ptrdiff_t) t * n_used;
            for (int i = 0; i < n_used; i++) {
                if (slots.slot_of[row[i]] >= 0 && std::count(row, row + n_used, row[i]) > 1) {
                    return false;
                }
            }
        }
        return n_resident >= n_used;
    }

    // expert_cache::plan and start_uploads, as if nothing were fetched: that depends on the machine
    void plan_swaps(int index) {
        cached_layer &         layer   = layers_[index];
        std::vector<hot::swap> planned = layer.chooser->plan(layer.slots, missed_);
        planned.erase(std::remove_if(planned.begin(), planned.end(), [](const hot::swap & s) { return s.guest; }), planned.end());
        if (planned.empty() && !layer.waiting.empty()) {
            planned.swap(layer.waiting);
        }
        layer.waiting.clear();
        const int64_t bytes = layer.facts.expert_bytes;
        for (size_t i = 0; i < planned.size(); i++) {
            const hot::swap & s = planned[i];
            if (layer.slots.coming[s.slot] >= 0 || layer.slots.slot_of[s.expert] >= 0 || layer.slots.is_coming(s.expert)) {
                continue;
            }
            if (upload_left_ < bytes && (upload_left_ < config_.upload_bytes || backlog_ > 0)) {
                layer.waiting.assign(planned.begin() + (ptrdiff_t) i, planned.end());
                return;
            }
            layer.counts.uploads++;
            layer.counts.evictions += layer.slots.expert_of[s.slot] >= 0;
            layer.slots.reserve(s.expert, s.slot);
            uploads_.push_back({batch_ + config_.arrival, index, s.slot, bytes});
            backlog_ += bytes;
            upload_left_ -= std::min(upload_left_, bytes);
        }
    }

    const cache_settings &    config_;
    std::vector<cached_layer> layers_;
    std::deque<upload>        uploads_;      // on their way, in the order in which they arrive
    int64_t                   backlog_ = 0;  // bytes of those
    int64_t                   upload_left_ = 0;
    int64_t                   batch_ = -1;
    std::vector<int>          missed_;
};

}  // namespace

#define HOT_REPLAY_API extern "C" __attribute__((visibility("default")))

// The number of a policy, or -1 when there is none of that name.
HOT_REPLAY_API int32_t hot_replay_policy(const char * name) {
    hot::policy_kind kind{};
    return hot::parse_policy(name, kind) ? (int32_t) kind : -1;
}

// Adds up into counts [n_layers] and misses_of [n_layers][most_used + 1]. The caller has checked that experts and layers
// are in range. Stops early when *stop becomes other than 0. Returns 0, or 1 when memory ran out.
HOT_REPLAY_API int32_t hot_replay(const cache_settings * config, const routing * trace, int32_t n_layers, const layer_facts * facts,
                                  layer_counts * counts, int64_t * misses_of, const volatile int32_t * stop) {
    try {
        cache replayed(*config, n_layers, facts, counts, misses_of);
        const int32_t * experts = trace->experts;
        for (int64_t b = 0; b < trace->n_blocks; b++) {
            const block & at = trace->blocks[b];
            if (at.layer <= 0) {
                if (*stop) {
                    break;
                }
                replayed.begin_batch();
            }
            replayed.compute(at.layer < 0 ? -1 - at.layer : at.layer, at.tokens, at.used, experts);
            experts += (ptrdiff_t) at.tokens * at.used;
        }
        return 0;
    } catch (const std::exception &) {
        return 1;
    }
}
