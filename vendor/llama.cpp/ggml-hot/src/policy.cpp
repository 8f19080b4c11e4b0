#include "policy.h"

#include <algorithm>
#include <cassert>
#include <climits>
#include <cmath>
#include <iterator>

namespace hot {

void slot_map::reserve(int expert, int slot) {
    assert(coming[slot] < 0 && slot_of[expert] < 0 && !is_coming_[expert]);
    if (expert_of[slot] >= 0) {
        slot_of[expert_of[slot]] = -1;
        expert_of[slot] = -1;
    } else {
        n_vacant_--;
    }
    coming[slot] = expert;
    is_coming_[expert] = true;
}

void slot_map::arrive(int slot) {
    assert(coming[slot] >= 0 && expert_of[slot] < 0);
    const int expert = coming[slot];
    coming[slot] = -1;
    is_coming_[expert] = false;
    expert_of[slot] = expert;
    slot_of[expert] = slot;
}

void slot_map::cancel(int slot) {
    assert(coming[slot] >= 0 && expert_of[slot] < 0);
    is_coming_[coming[slot]] = false;
    coming[slot] = -1;
    n_vacant_++;
}

namespace {

bool has_slot(const slot_map & slots, int expert) {
    return slots.slot_of[expert] >= 0 || slots.is_coming(expert);
}

// What all policies share: vacant slots go to the profile's most used experts, then to what was missed.
// Policies remember experts and hardly ever slots, so that they outlive a change of the number of slots.
class filling_policy : public policy {
protected:
    explicit filling_policy(const policy_options & options) : rank_(options.n_expert, INT_MAX) {
        const std::vector<double> & uses = options.uses;
        assert(uses.empty() || (int) uses.size() == options.n_expert);
        for (int e = 0; e < (int) uses.size(); e++) {
            if (uses[e] > 0) {
                favourites_.push_back(e);
            }
        }
        // stable here and below, so that equal counts resolve by index and a run can be repeated
        std::stable_sort(favourites_.begin(), favourites_.end(), [&](int a, int b) { return uses[a] > uses[b]; });
        for (int i = 0; i < (int) favourites_.size(); i++) {
            rank_[favourites_[i]] = i;
        }
    }

    int n_expert() const { return (int) rank_.size(); }

    // Also leaves in `unplaced_` the missed experts for which no vacant slot was left.
    std::vector<swap> fill(const slot_map & slots, const std::vector<int> & missed) {
        std::vector<swap> swaps;
        int n_vacant = slots.n_vacant();
        int slot     = 0;
        const auto place = [&](int expert) {
            while (!slots.vacant(slot)) {
                slot++;
            }
            swaps.push_back({expert, slot++});
            n_vacant--;
        };
        int rank = 0;  // favourites above it have a slot, or get one now
        for (; n_vacant > 0 && rank < (int) favourites_.size(); rank++) {
            if (!has_slot(slots, favourites_[rank])) {
                place(favourites_[rank]);
            }
        }
        unplaced_.clear();
        for (int expert : missed) {
            if (rank_[expert] < rank || has_slot(slots, expert)) {
                continue;
            }
            if (n_vacant > 0) {
                place(expert);
            } else {
                unplaced_.push_back(expert);
            }
        }
        return swaps;
    }

    std::vector<int> rank_;        // [n_expert] place among the favourites, or INT_MAX
    std::vector<int> favourites_;  // experts that the profile saw used, most used first
    std::vector<int> unplaced_;
};

class window_policy final : public filling_policy {
public:
    explicit window_policy(const policy_options & options)
        : filling_policy(options), interval_(std::max(1, options.interval)), hysteresis_(options.hysteresis),
          seen_(std::max(0, options.phase) % interval_), uses_(options.n_expert, 0) {}

    void set_interval(int interval) override { interval_ = std::max(1, interval); }

    void count(const int32_t * experts, int n) override {
        for (int i = 0; i < n; i++) {
            uses_[experts[i]]++;
        }
        seen_++;
    }

    std::vector<swap> plan(const slot_map & slots, const std::vector<int> & missed) override {
        std::vector<swap> swaps = fill(slots, missed);
        if (seen_ >= interval_) {
            due_.clear();
            if (swaps.empty()) {
                rebalance(slots);
            }
            std::fill(uses_.begin(), uses_.end(), 0);
            seen_ = 0;
        }
        if (swaps.empty() && !due_.empty()) {
            forget_what_is_done(slots);
            std::transform(due_.begin(), due_.end(), std::back_inserter(swaps), [](const displacement & d) { return d.by; });
        }
        return swaps;
    }

private:
    struct displacement {
        swap by;
        int  displaced;  // expert that held the slot, or -1
    };

    void rebalance(const slot_map & slots) {
        std::vector<int> newcomers;
        for (int e = 0; e < n_expert(); e++) {
            if (uses_[e] > 0 && !has_slot(slots, e)) {
                newcomers.push_back(e);
            }
        }
        std::vector<int> places;
        for (int slot = 0; slot < slots.n_slots(); slot++) {
            if (slots.coming[slot] < 0) {
                places.push_back(slot);
            }
        }
        // a vacant slot goes to any newcomer, however strong the hysteresis
        const auto needed = [&](int slot) { return slots.vacant(slot) ? 1 : uses_[slots.expert_of[slot]] + hysteresis_ + 1; };
        const auto worth  = [&](int slot) { return slots.vacant(slot) ? -1 : uses_[slots.expert_of[slot]]; };
        std::stable_sort(newcomers.begin(), newcomers.end(), [&](int a, int b) { return uses_[a] > uses_[b]; });
        std::stable_sort(places.begin(), places.end(), [&](int a, int b) { return worth(a) < worth(b); });

        const size_t n = std::min(newcomers.size(), places.size());
        for (size_t i = 0; i < n && uses_[newcomers[i]] >= needed(places[i]); i++) {
            due_.push_back({{newcomers[i], places[i]}, slots.expert_of[places[i]]});
        }
    }

    void forget_what_is_done(const slot_map & slots) {
        const auto done = [&](const displacement & d) {
            return has_slot(slots, d.by.expert) || d.by.slot >= slots.n_slots() || slots.coming[d.by.slot] >= 0 ||
                   slots.expert_of[d.by.slot] != d.displaced;
        };
        due_.erase(std::remove_if(due_.begin(), due_.end(), done), due_.end());
    }

    int              interval_;
    int              hysteresis_;
    int              seen_;  // tokens of this window
    std::vector<int> uses_;  // [n_expert] in this window
    std::vector<displacement> due_;  // by the last rebalance, and not started yet: the upload budget is finite
};

class lru_policy final : public filling_policy {
public:
    explicit lru_policy(const policy_options & options)
        : filling_policy(options), last_use_(options.n_expert, -(int64_t) options.n_expert) {
        // until they are used, the profile's experts age by its order, after all others
        for (size_t i = 0; i < favourites_.size(); i++) {
            last_use_[favourites_[i]] = -(int64_t) i;
        }
    }

    void count(const int32_t * experts, int n) override {
        now_++;
        for (int i = 0; i < n; i++) {
            last_use_[experts[i]] = now_;
        }
    }

    std::vector<swap> plan(const slot_map & slots, const std::vector<int> & missed) override {
        std::vector<swap> swaps = fill(slots, missed);
        if (!unplaced_.empty()) {
            displace_oldest(slots, swaps);
        }
        planned_ = now_;
        return swaps;
    }

private:
    void displace_oldest(const slot_map & slots, std::vector<swap> & swaps) {
        oldest_.clear();
        for (int slot = 0; slot < slots.n_slots(); slot++) {
            const int expert = slots.expert_of[slot];  // none where one is coming
            if (expert >= 0 && last_use_[expert] <= planned_) {
                oldest_.push_back(slot);
            }
        }
        const auto last_use = [&](int slot) { return last_use_[slots.expert_of[slot]]; };
        const size_t n = std::min(unplaced_.size(), oldest_.size());
        std::partial_sort(oldest_.begin(), oldest_.begin() + (ptrdiff_t) n, oldest_.end(), [&](int a, int b) {
            return last_use(a) != last_use(b) ? last_use(a) < last_use(b) : a < b;
        });
        std::partial_sort(unplaced_.begin(), unplaced_.begin() + (ptrdiff_t) n, unplaced_.end(), [&](int a, int b) {
            return last_use_[a] != last_use_[b] ? last_use_[a] > last_use_[b] : a < b;
        });
        for (size_t i = 0; i < n; i++) {
            swaps.push_back({unplaced_[i], oldest_[i]});
        }
    }

    int64_t              now_     = 0;  // tokens seen
    int64_t              planned_ = 0;  // of which so many before this batch
    std::vector<int64_t> last_use_;     // [n_expert] token of the last use; not above 0 when there was none
    std::vector<int>     oldest_;
};

class lfru_policy final : public filling_policy {
public:
    explicit lfru_policy(const policy_options & options)
        : filling_policy(options), uses_(options.n_expert, 0), last_use_(options.n_expert, 0) {
        set_interval(options.interval);
        // the profile's favourites begin with up to one use, so that they leave in its order and before all that was used
        for (int e : favourites_) {
            uses_[e] = options.uses[e] / options.uses[favourites_[0]];
        }
    }

    void set_interval(int interval) override { growth_ = std::exp2(half_lives / std::max(1, interval)); }

    // Instead of letting all counts fade with each token, the next use weighs more.
    void count(const int32_t * experts, int n) override {
        now_++;
        one_use_ *= growth_;
        if (one_use_ > 1e100) {
            for (double & uses : uses_) {
                uses /= one_use_;
            }
            one_use_ = 1;
        }
        for (int i = 0; i < n; i++) {
            uses_[experts[i]] += one_use_;
            last_use_[experts[i]] = now_;
        }
    }

    std::vector<swap> plan(const slot_map & slots, const std::vector<int> & missed) override {
        std::vector<swap> swaps = fill(slots, missed);
        if (!unplaced_.empty()) {
            displace_rarest(slots, swaps);
        }
        planned_ = now_;
        return swaps;
    }

private:
    void displace_rarest(const slot_map & slots, std::vector<swap> & swaps) {
        rarest_.clear();
        for (int slot = 0; slot < slots.n_slots(); slot++) {
            const int expert = slots.expert_of[slot];  // none where one is coming
            if (expert >= 0 && last_use_[expert] <= planned_) {
                rarest_.push_back(slot);
            }
        }
        const auto uses = [&](int slot) { return uses_[slots.expert_of[slot]]; };
        const size_t n = std::min(unplaced_.size(), rarest_.size());
        std::partial_sort(rarest_.begin(), rarest_.begin() + (ptrdiff_t) n, rarest_.end(), [&](int a, int b) {
            return uses(a) != uses(b) ? uses(a) < uses(b) : a < b;
        });
        std::partial_sort(unplaced_.begin(), unplaced_.begin() + (ptrdiff_t) n, unplaced_.end(), [&](int a, int b) {
            return uses_[a] != uses_[b] ? uses_[a] > uses_[b] : a < b;
        });
        bool guest = false;
        for (size_t i = 0; i < n; i++) {
            guest = guest || uses_[unplaced_[i]] <= uses(rarest_[i]);
            swaps.push_back({unplaced_[i], rarest_[i], guest});
        }
    }

    static constexpr double half_lives = 4;  // in an interval

    double               growth_  = 1;   // of one_use_, with each token
    double               one_use_ = 1;   // what the last token's uses weigh
    std::vector<double>  uses_;          // [n_expert] older uses weigh less
    int64_t              now_     = 0;   // tokens seen
    int64_t              planned_ = 0;   // of which so many before this batch
    std::vector<int64_t> last_use_;      // [n_expert] token of the last use; 0 when there was none
    std::vector<int>     rarest_;
};

class fixed_policy final : public filling_policy {
public:
    explicit fixed_policy(const policy_options & options) : filling_policy(options) {}

    void count(const int32_t *, int) override {}

    std::vector<swap> plan(const slot_map & slots, const std::vector<int> & missed) override { return fill(slots, missed); }
};

struct named_policy {
    policy_kind  kind;
    const char * name;
};

const named_policy policies[] = {{policy_kind::window, "window"}, {policy_kind::lru, "lru"}, {policy_kind::lfru, "lfru"},
                                 {policy_kind::fixed, "static"}};

}  // namespace

bool parse_policy(const std::string & name, policy_kind & kind) {
    for (const named_policy & p : policies) {
        if (name == p.name) {
            kind = p.kind;
            return true;
        }
    }
    return false;
}

const char * policy_name(policy_kind kind) {
    for (const named_policy & p : policies) {
        if (kind == p.kind) {
            return p.name;
        }
    }
    return "";
}

std::unique_ptr<policy> make_policy(const policy_options & options) {
    switch (options.kind) {
        case policy_kind::lru:    return std::make_unique<lru_policy>(options);
        case policy_kind::lfru:   return std::make_unique<lfru_policy>(options);
        case policy_kind::fixed:  return std::make_unique<fixed_policy>(options);
        case policy_kind::window: break;
    }
    return std::make_unique<window_policy>(options);
}

}  // namespace hot
