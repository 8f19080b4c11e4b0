// The window policy and the slot map, on numbers alone.
#include "../src/policy.h"
#include "check.h"

#include <random>

using hot::slot_map;

static void carry_out(slot_map & slots, const std::vector<hot::swap> & swaps) {
    for (const hot::swap & s : swaps) {
        slots.vacate(s.slot);
        slots.place(s.expert, s.slot);
    }
}

static void vacant_slots_are_filled_by_what_was_missed() {
    slot_map slots(8, 3);
    auto policy = hot::make_window_policy(8, 100, 1, 0);
    const int32_t used[] = {5, 2};
    policy->count(used, 2);
    carry_out(slots, policy->plan(slots, {2, 5}));
    CHECK(slots.slot_of[2] >= 0 && slots.slot_of[5] >= 0, "both missed experts must be resident");
    carry_out(slots, policy->plan(slots, {1, 3}));
    CHECK(slots.slot_of[1] >= 0 && slots.slot_of[3] < 0, "one slot was left: the first missed expert takes it");
    CHECK(policy->plan(slots, {7}).empty(), "a full cache must not swap inside the window");
}

static void a_newcomer_must_lead_by_more_than_the_hysteresis() {
    // at the end of the window: 3 + 1 + hysteresis uses displace 3, 3 + hysteresis do not
    for (int lead : {1, 2}) {
        slot_map slots(4, 1);
        slots.place(0, 0);
        auto policy = hot::make_window_policy(4, 1, 1, 0);
        std::vector<int32_t> token(3, 0);
        token.insert(token.end(), 3 + lead, 3);
        policy->count(token.data(), (int) token.size());
        carry_out(slots, policy->plan(slots, {}));
        CHECK((slots.slot_of[3] == 0) == (lead > 1), "lead %d", lead);
    }
}

static void counts_start_anew_with_each_window() {
    slot_map slots(3, 1);
    slots.place(0, 0);
    auto policy = hot::make_window_policy(3, 2, 0, 0);
    const int32_t zero[] = {0, 0, 0, 0, 0, 0, 0, 0, 0}, one = 1;
    policy->count(zero, 9);
    policy->count(zero, 9);
    CHECK(policy->plan(slots, {}).empty(), "the resident expert led");
    policy->count(&one, 1);
    CHECK(policy->plan(slots, {}).empty(), "the window is not over");
    policy->count(&one, 1);
    const auto swaps = policy->plan(slots, {});
    CHECK(swaps.size() == 1 && swaps[0].expert == 1, "old uses must not count in the new window");
}

static void swaps_always_keep_the_map_consistent() {
    std::mt19937 random(1);
    for (int round = 0; round < 200; round++) {
        const int n_expert = 2 + (int) (random() % 30), n_slots = 1 + (int) (random() % n_expert);
        slot_map slots(n_expert, n_slots);
        auto policy = hot::make_window_policy(n_expert, 1 + (int) (random() % 5), (int) (random() % 3), (int) (random() % 7));
        for (int token = 0; token < 50; token++) {
            std::vector<int32_t> used;
            std::vector<int> missed;
            for (int e = 0; e < n_expert; e++) {
                if (random() % 4 == 0) {
                    used.push_back(e);
                    if (slots.slot_of[e] < 0) missed.push_back(e);
                }
            }
            policy->count(used.data(), (int) used.size());
            carry_out(slots, policy->plan(slots, missed));
            for (int e = 0; e < n_expert; e++) {
                CHECK(slots.slot_of[e] < 0 || slots.expert_of[slots.slot_of[e]] == e, "expert %d", e);
            }
            for (int s = 0; s < n_slots; s++) {
                CHECK(slots.expert_of[s] < 0 || slots.slot_of[slots.expert_of[s]] == s, "slot %d", s);
            }
        }
    }
}

int main() {
    vacant_slots_are_filled_by_what_was_missed();
    a_newcomer_must_lead_by_more_than_the_hysteresis();
    counts_start_anew_with_each_window();
    swaps_always_keep_the_map_consistent();
    return verdict("policy");
}
