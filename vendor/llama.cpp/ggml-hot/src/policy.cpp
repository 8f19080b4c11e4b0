#include "policy.h"

#include <algorithm>
#include <cassert>
#include <numeric>

namespace hot {

void slot_map::vacate(int slot) {
    if (expert_of[slot] >= 0) {
        slot_of[expert_of[slot]] = -1;
        expert_of[slot] = -1;
    }
}

void slot_map::place(int expert, int slot) {
    assert(expert_of[slot] < 0 && slot_of[expert] < 0);
    slot_of[expert] = slot;
    expert_of[slot] = expert;
}

namespace {

class window_policy final : public policy {
public:
    window_policy(int n_expert, int interval, int hysteresis, int phase)
        : interval_(interval), hysteresis_(hysteresis), seen_(phase % interval), uses_(n_expert, 0) {}

    void count(const int32_t * experts, int n) override {
        for (int i = 0; i < n; i++) {
            uses_[experts[i]]++;
        }
        seen_++;
    }

    std::vector<swap> plan(const slot_map & resident, const std::vector<int> & missed) override {
        std::vector<swap> swaps = fill(resident, missed);
        if (seen_ >= interval_) {
            if (swaps.empty()) {
                swaps = rebalance(resident);
            }
            std::fill(uses_.begin(), uses_.end(), 0);
            seen_ = 0;
        }
        return swaps;
    }

private:
    static std::vector<swap> fill(const slot_map & resident, const std::vector<int> & missed) {
        std::vector<swap> swaps;
        size_t next = 0;
        for (int slot = 0; slot < (int) resident.expert_of.size() && next < missed.size(); slot++) {
            if (resident.expert_of[slot] < 0) {
                swaps.push_back({missed[next++], slot});
            }
        }
        return swaps;
    }

    std::vector<swap> rebalance(const slot_map & resident) const {
        std::vector<int> newcomers;
        for (int e = 0; e < (int) uses_.size(); e++) {
            if (resident.slot_of[e] < 0 && uses_[e] > 0) {
                newcomers.push_back(e);
            }
        }
        std::vector<int> slots(resident.expert_of.size());
        std::iota(slots.begin(), slots.end(), 0);
        const auto worth = [&](int slot) { return resident.expert_of[slot] < 0 ? -1 : uses_[resident.expert_of[slot]]; };
        // stable, so that equal counts resolve by index and a run can be repeated
        std::stable_sort(newcomers.begin(), newcomers.end(), [&](int a, int b) { return uses_[a] > uses_[b]; });
        std::stable_sort(slots.begin(), slots.end(), [&](int a, int b) { return worth(a) < worth(b); });

        std::vector<swap> swaps;
        const size_t n = std::min(newcomers.size(), slots.size());
        for (size_t i = 0; i < n && uses_[newcomers[i]] > worth(slots[i]) + hysteresis_; i++) {
            swaps.push_back({newcomers[i], slots[i]});
        }
        return swaps;
    }

    int              interval_;
    int              hysteresis_;
    int              seen_;
    std::vector<int> uses_;
};

}  // namespace

std::unique_ptr<policy> make_window_policy(int n_expert, int interval, int hysteresis, int phase) {
    return std::make_unique<window_policy>(n_expert, interval, hysteresis, phase);
}

}  // namespace hot
