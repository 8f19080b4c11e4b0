// The policies and the slot map, on numbers alone.
#include "../src/policy.h"
#include "check.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

using hot::make_policy;
using hot::policy_kind;
using hot::policy_options;
using hot::slot_map;

using experts = std::vector<int32_t>;

static const policy_kind all_kinds[] = {policy_kind::window, policy_kind::lru, policy_kind::lfru, policy_kind::fixed};

static policy_options options(policy_kind kind, int n_expert) {
    policy_options o;
    o.kind     = kind;
    o.n_expert = n_expert;
    return o;
}

static policy_options window(int n_expert, int interval, int hysteresis, int phase = 0) {
    policy_options o = options(policy_kind::window, n_expert);
    o.interval   = interval;
    o.hysteresis = hysteresis;
    o.phase      = phase;
    return o;
}

static void place(slot_map & slots, int expert, int slot) {
    slots.reserve(expert, slot);
    slots.arrive(slot);
}

static void carry_out(slot_map & slots, const std::vector<hot::swap> & swaps) {
    for (const hot::swap & s : swaps) {
        place(slots, s.expert, s.slot);
    }
}

// One token through one layer: what is not resident is missed. Returns the policy's plan.
static std::vector<hot::swap> token(hot::policy & policy, const slot_map & slots, const experts & used) {
    policy.count(used.data(), (int) used.size());
    std::vector<int> missed;
    std::copy_if(used.begin(), used.end(), std::back_inserter(missed), [&](int e) { return slots.slot_of[e] < 0; });
    std::sort(missed.begin(), missed.end());
    missed.erase(std::unique(missed.begin(), missed.end()), missed.end());
    return policy.plan(slots, missed);
}

static std::vector<int> residents(const slot_map & slots) {
    std::vector<int> in;
    for (int e = 0; e < (int) slots.slot_of.size(); e++) {
        if (slots.slot_of[e] >= 0) {
            in.push_back(e);
        }
    }
    return in;
}

// ---- slot map ----

static void an_upload_takes_the_slot_at_once_and_the_expert_may_be_read_on_arrival() {
    slot_map slots(4, 2);
    CHECK(slots.n_vacant() == 2 && slots.vacant(0) && slots.vacant(1), "all vacant at first");
    place(slots, 3, 0);
    CHECK(slots.slot_of[3] == 0 && slots.expert_of[0] == 3 && slots.n_vacant() == 1, "arrived");
    slots.reserve(1, 0);
    CHECK(slots.slot_of[3] == -1 && slots.expert_of[0] == -1, "the old expert is unreadable at once");
    CHECK(slots.slot_of[1] == -1 && slots.is_coming(1) && !slots.vacant(0) && slots.n_vacant() == 1, "the new one is on its way");
    slots.arrive(0);
    CHECK(slots.slot_of[1] == 0 && slots.expert_of[0] == 1 && !slots.is_coming(1) && slots.coming[0] == -1, "the new one may be read");
}

static void a_cancelled_upload_leaves_the_slot_vacant() {
    slot_map slots(4, 1);
    place(slots, 3, 0);
    slots.reserve(1, 0);
    slots.cancel(0);
    CHECK(slots.vacant(0) && slots.n_vacant() == 1 && !slots.is_coming(1) && residents(slots).empty(), "vacant, and nobody in it");
    place(slots, 1, 0);
    CHECK(slots.slot_of[1] == 0 && slots.n_vacant() == 0, "the same expert may come again");
}

// ---- names ----

static void policies_go_by_their_names() {
    for (policy_kind kind : all_kinds) {
        policy_kind parsed = kind == policy_kind::lru ? policy_kind::window : policy_kind::lru;
        CHECK(hot::parse_policy(hot::policy_name(kind), parsed) && parsed == kind, "%s", hot::policy_name(kind));
    }
    policy_kind kind = policy_kind::lru;
    for (const char * name : {"", "LRU", "fixed", "window ", "lfu"}) {
        CHECK(!hot::parse_policy(name, kind) && kind == policy_kind::lru, "'%s' is no policy", name);
    }
    CHECK(hot::parse_policy("static", kind) && kind == policy_kind::fixed, "the fixed policy is called static");
}

// ---- filling ----

static void vacant_slots_are_filled_by_what_was_missed() {
    for (policy_kind kind : all_kinds) {
        slot_map slots(8, 3);
        auto policy = make_policy(options(kind, 8));
        carry_out(slots, token(*policy, slots, {5, 2}));
        CHECK(slots.slot_of[2] >= 0 && slots.slot_of[5] >= 0, "%s: both missed experts must be resident", hot::policy_name(kind));
        carry_out(slots, token(*policy, slots, {2, 5, 6}));
        CHECK(slots.slot_of[6] >= 0 && slots.n_vacant() == 0, "%s: the last slot is filled, too", hot::policy_name(kind));
    }
}

static void favourites_of_the_profile_come_first_missed_or_not() {
    for (policy_kind kind : all_kinds) {
        slot_map slots(8, 3);
        policy_options o = options(kind, 8);
        o.uses = {0, 5, 0, 9, 0, 5, 7, 1};
        auto policy = make_policy(o);
        const auto swaps = token(*policy, slots, {0, 5});
        CHECK(swaps.size() >= 3 && swaps[0].expert == 3 && swaps[1].expert == 6 && swaps[2].expert == 1,
              "%s: by uses, and of equals the first", hot::policy_name(kind));
    }
}

static void what_the_profile_never_saw_comes_only_when_missed() {
    for (policy_kind kind : all_kinds) {
        slot_map slots(6, 4);
        policy_options o = options(kind, 6);
        o.uses = {0, 3, 0, 0, 0, 8};
        auto policy = make_policy(o);
        const auto swaps = token(*policy, slots, {2, 5});
        carry_out(slots, swaps);
        CHECK(residents(slots) == std::vector<int>({1, 2, 5}), "%s: the profile's two and the missed one", hot::policy_name(kind));
        CHECK(swaps.size() == 3 && swaps[2].expert == 2, "%s: the missed one last", hot::policy_name(kind));
        CHECK(token(*policy, slots, {5}).empty() && slots.n_vacant() == 1, "%s: one slot stays vacant", hot::policy_name(kind));
    }
}

static void what_was_not_started_is_named_again() {
    for (policy_kind kind : all_kinds) {
        slot_map slots(8, 4);
        policy_options o = options(kind, 8);
        o.uses = {0, 0, 0, 0, 1, 2, 3, 4};
        auto policy = make_policy(o);
        for (int expert : {7, 6, 5, 4}) {
            const auto swaps = token(*policy, slots, {});
            CHECK(!swaps.empty() && swaps[0].expert == expert, "%s: expert %d is next", hot::policy_name(kind), expert);
            if (!swaps.empty()) {
                slots.reserve(swaps[0].expert, swaps[0].slot);  // the others must wait for the next token
            }
        }
        CHECK(token(*policy, slots, {}).empty(), "%s: all are on their way", hot::policy_name(kind));
        slots.cancel(2);
        const auto swaps = token(*policy, slots, {});
        CHECK(swaps.size() == 1 && swaps[0].expert == 5 && swaps[0].slot == 2, "%s: the cancelled one", hot::policy_name(kind));
    }
}

static void an_expert_on_its_way_is_not_fetched_twice() {
    for (policy_kind kind : all_kinds) {
        slot_map slots(4, 2);
        auto policy = make_policy(options(kind, 4));
        slots.reserve(3, 1);
        CHECK(token(*policy, slots, {3}).empty(), "%s", hot::policy_name(kind));
    }
}

// ---- window ----

static void a_full_cache_does_not_swap_inside_the_window() {
    slot_map slots(4, 1);
    place(slots, 0, 0);
    auto policy = make_policy(window(4, 3, 0));
    CHECK(token(*policy, slots, {1}).empty() && token(*policy, slots, {1}).empty(), "two of three tokens");
    const auto swaps = token(*policy, slots, {1});
    CHECK(swaps.size() == 1 && swaps[0].expert == 1, "the third ends the window");
}

static void a_newcomer_must_lead_by_more_than_the_hysteresis() {
    // at the end of the window: 3 + 1 + hysteresis uses displace 3, 3 + hysteresis do not
    for (int lead : {1, 2}) {
        slot_map slots(4, 1);
        place(slots, 0, 0);
        auto policy = make_policy(window(4, 1, 1));
        experts used(3, 0);
        used.insert(used.end(), 3 + lead, 3);
        carry_out(slots, token(*policy, slots, used));
        CHECK((slots.slot_of[3] == 0) == (lead > 1), "lead %d", lead);
    }
}

static void nobody_is_displaced_while_vacant_slots_are_filled() {
    slot_map slots(4, 2);
    place(slots, 0, 0);
    auto policy = make_policy(window(4, 2, 0));
    token(*policy, slots, {1, 1, 1, 3, 3});
    carry_out(slots, token(*policy, slots, {2}));
    CHECK(residents(slots) == std::vector<int>({0, 2}), "the window's end filled a slot");
    CHECK(token(*policy, slots, {2}).empty(), "and displaced nobody, though 1 and 3 had led over 0");
}

static void a_vacant_slot_asks_for_no_lead() {
    slot_map slots(4, 2);
    place(slots, 0, 0);
    slots.reserve(1, 1);
    auto policy = make_policy(window(4, 2, 5));
    CHECK(token(*policy, slots, {0, 2}).empty(), "no room for the missed one yet");
    slots.cancel(1);
    const auto swaps = token(*policy, slots, {0});
    CHECK(swaps.size() == 1 && swaps[0].expert == 2 && swaps[0].slot == 1, "used once in the window, and there is room");
}

static void the_most_used_newcomer_displaces_the_least_used_resident() {
    slot_map slots(6, 3);
    for (int e = 0; e < 3; e++) {
        place(slots, e, e);
    }
    auto policy = make_policy(window(6, 1, 0));
    const auto swaps = token(*policy, slots, {0, 0, 0, 0, 2, 4, 4, 4, 5, 5, 3});
    CHECK(swaps.size() == 2, "1 and 2 go, 0 stays; 3 does not lead over anyone: %zu", swaps.size());
    CHECK(swaps.size() == 2 && swaps[0].expert == 4 && swaps[0].slot == 1 && swaps[1].expert == 5 && swaps[1].slot == 2, "best first");
}

static void counts_start_anew_with_each_window() {
    slot_map slots(3, 1);
    place(slots, 0, 0);
    auto policy = make_policy(window(3, 2, 0));
    const experts zero(9, 0);
    CHECK(token(*policy, slots, zero).empty() && token(*policy, slots, zero).empty(), "the resident expert led");
    CHECK(token(*policy, slots, {1}).empty(), "the window is not over");
    const auto swaps = token(*policy, slots, {1});
    CHECK(swaps.size() == 1 && swaps[0].expert == 1, "old uses must not count in the new window");
}

static void a_batch_counts_token_by_token() {
    slot_map slots(3, 1);
    place(slots, 0, 0);
    auto policy = make_policy(window(3, 4, 0));
    const int32_t one = 1;
    for (int i = 0; i < 4; i++) {
        policy->count(&one, 1);
    }
    const auto swaps = policy->plan(slots, {1});
    CHECK(swaps.size() == 1 && swaps[0].expert == 1, "four tokens in one batch are a window of four");
}

static void the_phase_shifts_the_first_window() {
    for (int phase : {0, 3, 13}) {
        slot_map slots(3, 1);
        place(slots, 0, 0);
        auto policy = make_policy(window(3, 10, 0, phase));
        int tokens = 1;
        while (tokens < 20 && token(*policy, slots, {1}).empty()) {
            tokens++;
        }
        CHECK(tokens == 10 - phase % 10, "phase %d: swapped after %d tokens", phase, tokens);
    }
}

static void the_interval_changes_in_mid_window() {
    slot_map slots(3, 1);
    place(slots, 0, 0);
    auto policy = make_policy(window(3, 1000, 0));
    CHECK(token(*policy, slots, {1}).empty() && token(*policy, slots, {1}).empty(), "far from the end");
    policy->set_interval(3);
    CHECK(token(*policy, slots, {1}).size() == 1, "two tokens and one are three");
}

static void a_rebalance_that_exceeds_the_upload_budget_is_continued() {
    slot_map slots(8, 3);
    for (int e = 0; e < 3; e++) {
        place(slots, e, e);
    }
    auto policy = make_policy(window(8, 2, 0));
    token(*policy, slots, {3, 4, 5});
    auto swaps = token(*policy, slots, {3, 4, 5});
    CHECK(swaps.size() == 3, "all three residents were idle");
    slots.reserve(swaps[0].expert, swaps[0].slot);
    swaps = token(*policy, slots, {6, 6, 6, 6});
    CHECK(swaps.size() == 2 && swaps[0].expert == 4 && swaps[1].expert == 5, "inside the next window, the rest");
    slots.arrive(0);
    carry_out(slots, swaps);
    CHECK(residents(slots) == std::vector<int>({3, 4, 5}), "done");
    swaps = token(*policy, slots, {6, 6, 6, 6});
    CHECK(swaps.size() == 1 && swaps[0].expert == 6, "the next window speaks for itself");
    token(*policy, slots, {7});
    swaps = token(*policy, slots, {7, 7});
    CHECK(swaps.size() == 1 && swaps[0].expert == 7, "and what was due before is forgotten then");
}

static void a_leftover_for_a_slot_that_is_gone_is_not_named() {
    slot_map slots(8, 3);
    for (int e = 0; e < 3; e++) {
        place(slots, e, e);
    }
    auto policy = make_policy(window(8, 1, 0));
    CHECK(token(*policy, slots, {3, 4, 5}).size() == 3, "none of them is started");
    policy->set_interval(100);
    slot_map fewer(8, 1);
    place(fewer, 0, 0);
    const auto swaps = policy->plan(fewer, {});
    CHECK(swaps.size() == 1 && swaps[0].expert == 3 && swaps[0].slot == 0, "two of three slots were given back");
}

// ---- lru ----

static void the_expert_unused_for_longest_makes_room() {
    slot_map slots(5, 3);
    auto policy = make_policy(options(policy_kind::lru, 5));
    for (int e : {0, 1, 2, 0}) {
        carry_out(slots, token(*policy, slots, {e}));
    }
    const auto swaps = token(*policy, slots, {3});
    CHECK(swaps.size() == 1 && swaps[0].expert == 3 && swaps[0].slot == slots.slot_of[1], "expert 1 was used before 2 and 0");
}

static void an_expert_used_by_the_same_batch_stays() {
    for (policy_kind kind : {policy_kind::lru, policy_kind::lfru}) {
        slot_map slots(6, 2);
        policy_options o = options(kind, 6);
        o.interval = 1;
        auto policy = make_policy(o);
        carry_out(slots, token(*policy, slots, {0, 1}));
        CHECK(token(*policy, slots, {0, 1, 2}).empty(), "both were used by this very token");
        const int32_t first[] = {1, 3}, second[] = {3, 4};
        policy->count(first, 2);
        policy->count(second, 2);
        const auto swaps = policy->plan(slots, {3, 4});
        CHECK(swaps.size() == 1 && swaps[0].slot == slots.slot_of[0], "1 was used by the first token of the batch, 0 before it");
        CHECK(!swaps.empty() && swaps[0].expert == 3, "3 and 4 were last used by the same token: the first comes");
    }
}

static void of_the_misses_in_a_batch_the_latest_come_first() {
    slot_map slots(6, 2);
    auto policy = make_policy(options(policy_kind::lru, 6));
    carry_out(slots, token(*policy, slots, {0, 1}));
    for (int32_t e : {2, 4, 3}) {
        policy->count(&e, 1);
    }
    const auto swaps = policy->plan(slots, {2, 3, 4});
    CHECK(swaps.size() == 2 && swaps[0].expert == 3 && swaps[1].expert == 4, "two places, for the two used last");
}

static void unused_experts_of_the_profile_leave_in_reverse_order() {
    for (policy_kind kind : {policy_kind::lru, policy_kind::lfru}) {
        slot_map slots(6, 3);
        policy_options o = options(kind, 6);
        o.uses = {9, 0, 5, 0, 7, 0};
        auto policy = make_policy(o);
        carry_out(slots, token(*policy, slots, {}));
        std::vector<int> gone;
        for (int missed : {1, 3, 5}) {
            const auto swaps = token(*policy, slots, {missed});
            gone.push_back(swaps.empty() ? -1 : slots.expert_of[swaps[0].slot]);
            carry_out(slots, swaps);
        }
        CHECK(gone == std::vector<int>({2, 4, 0}), "%s: %d %d %d", hot::policy_name(kind), gone[0], gone[1], gone[2]);
    }
}

// ---- lfru ----

static policy_options lfru(int n_expert, int interval) {
    policy_options o = options(policy_kind::lfru, n_expert);
    o.interval = interval;
    return o;
}

static void the_expert_with_the_fewest_recent_uses_makes_room() {
    slot_map slots(5, 3);
    auto policy = make_policy(lfru(5, 40));  // a use counts half after 10 tokens
    for (int e : {0, 0, 0, 1, 2, 2}) {
        carry_out(slots, token(*policy, slots, {e}));
    }
    const auto swaps = token(*policy, slots, {3});
    CHECK(swaps.size() == 1 && swaps[0].slot == slots.slot_of[1], "expert 1 was used once, 0 and 2 more often");
}

static void a_use_counts_half_after_a_quarter_of_the_interval() {
    // expert 0 was used twice, the last time n tokens before expert 1 is used once: 1 leads after about one half-life
    for (int n : {9, 11}) {
        slot_map slots(3, 1);
        auto policy = make_policy(lfru(3, 40));
        carry_out(slots, token(*policy, slots, {0}));
        const int32_t again[] = {0};
        policy->count(again, 1);  // one token later: 1 + 2^(-1/10) uses, 1.93
        for (int i = 1; i < n; i++) {
            token(*policy, slots, {});
        }
        const auto swaps = token(*policy, slots, {1});
        CHECK(swaps.size() == 1 && swaps[0].guest == (n == 9), "%d tokens", n);
    }
}

static void counts_stay_true_over_many_tokens() {
    for (int interval : {1, 4, 1000}) {  // rescaled every 83 tokens, every 332, and once in 83,000
        slot_map slots(4, 2);
        auto policy = make_policy(lfru(4, interval));
        for (int i = 0; i < 200000; i++) {
            carry_out(slots, token(*policy, slots, {i % 2}));
        }
        CHECK(residents(slots) == std::vector<int>({0, 1}), "interval %d", interval);
        for (int i = 0; i < interval; i++) {
            carry_out(slots, token(*policy, slots, {2}));
        }
        CHECK(slots.slot_of[2] >= 0, "interval %d: expert 2 was used all the time", interval);
    }
}

// ---- static ----

static void what_came_first_stays() {
    for (bool with_profile : {false, true}) {
        slot_map slots(6, 2);
        policy_options o = options(policy_kind::fixed, 6);
        if (with_profile) {
            o.uses = {0, 0, 0, 2, 0, 3};
        }
        auto policy = make_policy(o);
        carry_out(slots, token(*policy, slots, {3, 5}));
        for (int i = 0; i < 500; i++) {
            CHECK(token(*policy, slots, {0, 1, 2}).empty(), "token %d", i);
        }
        CHECK(residents(slots) == std::vector<int>({3, 5}), "the same two");
    }
}

// ---- all of them, at random ----

static void check_map(const slot_map & slots) {
    int n_vacant = 0;
    std::set<int> coming;
    for (int s = 0; s < slots.n_slots(); s++) {
        const int expert = slots.expert_of[s];
        CHECK(expert < 0 || (slots.slot_of[expert] == s && slots.coming[s] < 0), "slot %d", s);
        n_vacant += slots.vacant(s) ? 1 : 0;
        CHECK(slots.coming[s] < 0 || coming.insert(slots.coming[s]).second, "slot %d: comes twice", s);
    }
    CHECK(n_vacant == slots.n_vacant(), "%d vacant, said to be %d", n_vacant, slots.n_vacant());
    for (int e = 0; e < (int) slots.slot_of.size(); e++) {
        CHECK(slots.slot_of[e] < 0 || slots.expert_of[slots.slot_of[e]] == e, "expert %d", e);
        CHECK(slots.is_coming(e) == (coming.count(e) > 0), "expert %d", e);
    }
}

// What a policy may rely on and what it promises, watched from outside.
struct observer {
    policy_options       o;
    std::vector<int64_t> last_use;  // [n_expert] token, 0 = never
    std::vector<int>     window;    // [n_expert] uses in this window
    std::vector<int>     ended;     // [n_expert] uses in the last window that ended
    std::vector<double>  faded;     // [n_expert] uses, each half after a quarter of the interval
    std::set<int>        batch;     // experts used since the last plan
    int64_t              now = 0;
    int                  seen;

    explicit observer(const policy_options & opt)
        : o(opt), last_use(opt.n_expert, 0), window(opt.n_expert, 0), ended(opt.n_expert, 0), faded(opt.n_expert, 0), seen(opt.phase % opt.interval) {
        const double most = opt.uses.empty() ? 0 : *std::max_element(opt.uses.begin(), opt.uses.end());
        for (int e = 0; most > 0 && e < opt.n_expert; e++) {
            faded[e] = opt.uses[e] / most;
        }
    }

    void count(const experts & used) {
        now++;
        seen++;
        for (double & uses : faded) {
            uses *= std::exp2(-4.0 / o.interval);
        }
        for (int e : used) {
            faded[e]++;
            last_use[e] = now;
            window[e]++;
            batch.insert(e);
        }
    }

    void check(const slot_map & slots, const std::vector<int> & missed, const std::vector<hot::swap> & swaps) {
        if (seen >= o.interval) {
            ended.swap(window);
            std::fill(window.begin(), window.end(), 0);
            seen = 0;
        }
        std::set<int> experts_named, slots_named;
        int n_displaced = 0;
        for (const hot::swap & s : swaps) {
            CHECK(s.slot >= 0 && s.slot < slots.n_slots() && s.expert >= 0 && s.expert < o.n_expert, "in range");
            CHECK(slots.coming[s.slot] < 0, "slot %d is reserved", s.slot);
            CHECK(slots.slot_of[s.expert] < 0 && !slots.is_coming(s.expert), "expert %d is here or coming", s.expert);
            CHECK(experts_named.insert(s.expert).second && slots_named.insert(s.slot).second, "%d -> %d twice", s.expert, s.slot);
            n_displaced += slots.expert_of[s.slot] >= 0 ? 1 : 0;
            check_displacement(slots, s);
        }
        check_filling(slots, missed, swaps, experts_named);
        if (o.kind == policy_kind::lfru) {
            check_lfru(slots, missed, swaps, experts_named, slots_named);
        }
        if (o.kind == policy_kind::lru) {
            check_lru(slots, missed, experts_named, slots_named);
        }
        CHECK(o.kind != policy_kind::fixed || n_displaced == 0, "static displaces nobody");
        batch.clear();
    }

    void check_displacement(const slot_map & slots, const hot::swap & s) const {
        const int displaced = slots.expert_of[s.slot];
        if (displaced < 0) {
            return;
        }
        if (o.kind == policy_kind::window) {
            CHECK(ended[s.expert] > ended[displaced] + o.hysteresis, "%d uses against %d", ended[s.expert], ended[displaced]);
        }
        if (o.kind == policy_kind::lru || o.kind == policy_kind::lfru) {
            CHECK(batch.count(displaced) == 0, "expert %d was used by this batch", displaced);
        }
    }

    // Vacant slots: the profile's best, in order, then misses. None stays vacant while either is left.
    void check_filling(const slot_map & slots, const std::vector<int> & missed, const std::vector<hot::swap> & swaps,
                       const std::set<int> & experts_named) const {
        const auto outside = [&](int e) { return slots.slot_of[e] < 0 && !slots.is_coming(e); };
        std::vector<int> favourites;
        for (int e = 0; e < (int) o.uses.size(); e++) {
            if (o.uses[e] > 0 && outside(e)) {
                favourites.push_back(e);
            }
        }
        std::stable_sort(favourites.begin(), favourites.end(), [&](int a, int b) { return o.uses[a] > o.uses[b]; });
        favourites.resize(std::min<size_t>(favourites.size(), slots.n_vacant()));
        for (size_t i = 0; i < favourites.size(); i++) {
            CHECK(i < swaps.size() && swaps[i].expert == favourites[i] && slots.vacant(swaps[i].slot), "favourite %zu", i);
        }
        const auto filled = std::count_if(swaps.begin(), swaps.end(), [&](const hot::swap & s) { return slots.vacant(s.slot); });
        if (filled < slots.n_vacant()) {
            for (int e : missed) {
                CHECK(!outside(e) || experts_named.count(e), "there was room for expert %d", e);
            }
        }
    }

    void check_lfru(const slot_map & slots, const std::vector<int> & missed, const std::vector<hot::swap> & swaps,
                    const std::set<int> & experts_named, const std::set<int> & slots_named) const {
        constexpr double rounding = 1e-9;
        double most_gone = 0, fewest_kept = HUGE_VAL;
        for (const hot::swap & s : swaps) {
            const int gone = slots.expert_of[s.slot];
            if (gone >= 0) {
                most_gone = std::max(most_gone, faded[gone]);
                CHECK(s.guest || faded[s.expert] > faded[gone] * (1 - rounding), "%g uses against %g", faded[s.expert], faded[gone]);
            }
        }
        for (int s = 0; s < slots.n_slots(); s++) {
            const int e = slots.expert_of[s];
            if (e >= 0 && !slots_named.count(s) && !batch.count(e)) {
                fewest_kept = std::min(fewest_kept, faded[e]);
            }
        }
        CHECK(most_gone <= fewest_kept * (1 + rounding), "an expert with more uses than another was displaced");
        for (int e : missed) {
            const bool wanted = slots.slot_of[e] < 0 && !slots.is_coming(e) && !experts_named.count(e);
            CHECK(!wanted || faded[e] <= fewest_kept * (1 + rounding), "expert %d could have come in", e);
        }
    }

    void check_lru(const slot_map & slots, const std::vector<int> & missed, const std::set<int> & experts_named,
                   const std::set<int> & slots_named) const {
        int64_t youngest_gone = 0, oldest_kept = now + 1;
        for (int s = 0; s < slots.n_slots(); s++) {
            const int e = slots.expert_of[s];
            if (e >= 0 && slots_named.count(s)) {
                youngest_gone = std::max(youngest_gone, last_use[e]);
            } else if (e >= 0 && !batch.count(e)) {
                oldest_kept = std::min(oldest_kept, last_use[e]);
            }
        }
        CHECK(youngest_gone <= oldest_kept, "an expert used later than another was displaced");
        for (int e : missed) {
            const bool wanted = slots.slot_of[e] < 0 && !slots.is_coming(e) && !experts_named.count(e);
            CHECK(!wanted || oldest_kept > now, "expert %d could have come in", e);
        }
    }
};

// A cache's life with uploads that are put off, take their time or fail. Returns all that was planned.
static std::vector<int> live(policy_options o, unsigned seed, int n_slots, bool watch) {
    std::mt19937 random(seed);
    const auto one_in = [&](unsigned n) { return random() % n == 0; };
    slot_map slots(o.n_expert, n_slots);
    auto policy = make_policy(o);
    observer seen(o);
    std::vector<int> log;
    for (int step = 0; step < 120; step++) {
        std::set<int> missed;
        const int n_tokens = one_in(3) ? 1 + (int) (random() % 5) : 1;
        for (int t = 0; t < n_tokens; t++) {
            experts used;
            for (int e = 0; e < o.n_expert; e++) {
                if (one_in(2 + (unsigned) e % 7)) {
                    used.push_back(e);
                    if (slots.slot_of[e] < 0) {
                        missed.insert(e);
                    }
                }
            }
            policy->count(used.data(), (int) used.size());
            seen.count(used);
        }
        const std::vector<int> missed_list(missed.begin(), missed.end());
        const auto swaps = policy->plan(slots, missed_list);
        if (watch) {
            seen.check(slots, missed_list, swaps);
        }
        size_t budget = one_in(3) ? swaps.size() : random() % 3;
        for (const hot::swap & s : swaps) {
            log.insert(log.end(), {step, s.expert, s.slot});
            if (budget > 0) {
                slots.reserve(s.expert, s.slot);
                budget--;
            }
        }
        for (int s = 0; s < n_slots; s++) {
            if (slots.coming[s] >= 0 && one_in(2)) {
                if (one_in(8)) {
                    slots.cancel(s);
                } else {
                    slots.arrive(s);
                }
            }
        }
        if (watch) {
            check_map(slots);
        }
        if (one_in(40)) {
            o.interval = 1 + (int) (random() % 9);
            policy->set_interval(o.interval);
            seen.o.interval = o.interval;
        }
    }
    return log;
}

static policy_options random_options(std::mt19937 & random, policy_kind kind) {
    policy_options o = options(kind, 1 + (int) (random() % 40));
    o.interval   = 1 + (int) (random() % 9);
    o.hysteresis = (int) (random() % 3);
    o.phase      = (int) (random() % 12);
    if (random() % 2) {
        for (int e = 0; e < o.n_expert; e++) {
            o.uses.push_back(random() % 3 ? (double) (random() % 20) : 0);
        }
    }
    return o;
}

static void plans_keep_the_contract_whatever_happens_to_the_uploads() {
    std::mt19937 random(1);
    for (policy_kind kind : all_kinds) {
        for (int round = 0; round < 150; round++) {
            const policy_options o = random_options(random, kind);
            live(o, (unsigned) random(), 1 + (int) (random() % o.n_expert), true);
        }
    }
}

static void the_same_run_gives_the_same_plans() {
    std::mt19937 random(2);
    for (policy_kind kind : all_kinds) {
        size_t planned = 0;
        for (int round = 0; round < 10; round++) {
            const policy_options o = random_options(random, kind);
            const unsigned seed = (unsigned) random();
            const int n_slots = 1 + (int) (random() % o.n_expert);
            const std::vector<int> first = live(o, seed, n_slots, false);
            CHECK(first == live(o, seed, n_slots, false), "%s, round %d", hot::policy_name(kind), round);
            planned += first.size();
        }
        CHECK(planned > 0, "%s: nothing was planned, nothing compared", hot::policy_name(kind));
    }
}

static void a_cache_without_slots_is_left_alone() {
    for (policy_kind kind : all_kinds) {
        slot_map slots(4, 0);
        policy_options o = window(4, 1, 0);
        o.kind = kind;
        o.uses = {1, 2, 3, 4};
        auto policy = make_policy(o);
        CHECK(token(*policy, slots, {1, 2}).empty(), "%s", hot::policy_name(kind));
    }
}

int main() {
    an_upload_takes_the_slot_at_once_and_the_expert_may_be_read_on_arrival();
    a_cancelled_upload_leaves_the_slot_vacant();
    policies_go_by_their_names();
    vacant_slots_are_filled_by_what_was_missed();
    favourites_of_the_profile_come_first_missed_or_not();
    what_the_profile_never_saw_comes_only_when_missed();
    what_was_not_started_is_named_again();
    an_expert_on_its_way_is_not_fetched_twice();
    a_full_cache_does_not_swap_inside_the_window();
    a_newcomer_must_lead_by_more_than_the_hysteresis();
    nobody_is_displaced_while_vacant_slots_are_filled();
    a_vacant_slot_asks_for_no_lead();
    the_most_used_newcomer_displaces_the_least_used_resident();
    counts_start_anew_with_each_window();
    a_batch_counts_token_by_token();
    the_phase_shifts_the_first_window();
    the_interval_changes_in_mid_window();
    a_rebalance_that_exceeds_the_upload_budget_is_continued();
    a_leftover_for_a_slot_that_is_gone_is_not_named();
    the_expert_unused_for_longest_makes_room();
    an_expert_used_by_the_same_batch_stays();
    of_the_misses_in_a_batch_the_latest_come_first();
    unused_experts_of_the_profile_leave_in_reverse_order();
    the_expert_with_the_fewest_recent_uses_makes_room();
    a_use_counts_half_after_a_quarter_of_the_interval();
    counts_stay_true_over_many_tokens();
    what_came_first_stays();
    plans_keep_the_contract_whatever_happens_to_the_uploads();
    the_same_run_gives_the_same_plans();
    a_cache_without_slots_is_left_alone();
    return verdict("policy");
}
