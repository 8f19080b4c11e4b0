// Which experts of one layer deserve a place in VRAM. Knows numbers only: no tensors, no devices, no threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace hot {

struct swap {
    int  expert;         // comes in
    int  slot;           // takes this place
    bool guest = false;  // hardly worth a copy by itself: only if this batch computes with it
};

// Slots of one layer: which expert may be read where, and which is on its way. An upload has three moments:
// reserve (the slot's old expert is unreadable at once), then arrive (the new one may be read) or cancel.
struct slot_map {
    std::vector<int> slot_of;    // [n_expert] slot of a readable expert, or -1
    std::vector<int> expert_of;  // [n_slots] readable expert, or -1
    std::vector<int> coming;     // [n_slots] expert on its way into the slot, or -1

    slot_map(int n_expert, int n_slots)
        : slot_of(n_expert, -1), expert_of(n_slots, -1), coming(n_slots, -1), is_coming_(n_expert, false), n_vacant_(n_slots) {}

    int  n_slots() const { return (int) expert_of.size(); }
    int  n_vacant() const { return n_vacant_; }
    bool vacant(int slot) const { return expert_of[slot] < 0 && coming[slot] < 0; }
    bool is_coming(int expert) const { return is_coming_[expert]; }

    void reserve(int expert, int slot);  // the slot must not be reserved, the expert neither resident nor coming
    void arrive(int slot);
    void cancel(int slot);

private:
    // follow from the above; kept because a policy asks for them with every token
    std::vector<bool> is_coming_;  // [n_expert]
    int               n_vacant_;
};

class policy {
public:
    virtual ~policy() = default;

    // One token's choice of experts in this layer.
    virtual void count(const int32_t * experts, int n) = 0;

    // After each batch of tokens: the swaps to do, best first. `missed` are the experts just computed on the CPU,
    // each once. Never names a slot that is reserved, nor an expert that is resident or coming; never a slot or an
    // expert twice. What is not started (the upload budget is finite) may be named again by the next call. Guests come
    // last: they may be dropped at no loss.
    virtual std::vector<swap> plan(const slot_map & slots, const std::vector<int> & missed) = 0;

    virtual void set_interval(int) {}
};

enum class policy_kind { window, lru, lfru, fixed };

// "window", "lru", "lfru", "static"; false when it is none of them.
bool parse_policy(const std::string & name, policy_kind & kind);
const char * policy_name(policy_kind kind);

struct policy_options {
    policy_kind kind       = policy_kind::window;
    int         n_expert   = 0;
    int         interval   = 60;  // window: tokens between rebalances; lfru: four half-lives of a use
    int         hysteresis = 1;   // window: uses by which a newcomer must lead to displace a resident expert
    int         phase      = 0;   // window: shifts it by so many tokens, so that layers do not all swap at once
    std::vector<double> uses;     // [n_expert] from a profile, or empty: which experts come first
};

// window  Tumbling window: counts over `interval` tokens; at its end an expert displaces a resident one that was used
//         at least hysteresis + 1 times less. Vacant slots are filled at once by what was missed.
// lru     Every missed expert comes in, in place of the one unused for longest; never one used by the same batch.
// lfru    Uses count half after a quarter of `interval` tokens. A missed expert comes in where its uses lead those of the
//         resident one with the fewest, in place of that; never one used by the same batch. The others are named as
//         guests in place of the next ones: the next guest will take the place of the last.
// fixed   The experts with the most uses in the profile, and they stay. Without a profile: the first that are missed.
//
// With a profile, all of them fill vacant slots with its most used experts first, missed or not.
std::unique_ptr<policy> make_policy(const policy_options & options);

}  // namespace hot
