// Which experts of one layer deserve a place in VRAM. Knows numbers only: no tensors, no devices.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace hot {

struct swap {
    int expert;  // comes in
    int slot;    // takes this place
};

// Slots of one layer: which expert lies where. slot_of and expert_of are each other's inverse; -1 = none.
struct slot_map {
    std::vector<int> slot_of;    // [n_expert]
    std::vector<int> expert_of;  // [n_slots]

    slot_map(int n_expert, int n_slots) : slot_of(n_expert, -1), expert_of(n_slots, -1) {}

    void vacate(int slot);               // forget the expert in a slot, if any
    void place(int expert, int slot);    // the slot must be vacant
};

class policy {
public:
    virtual ~policy() = default;

    // One token's choice of experts in this layer. resident says where they are now.
    virtual void count(const int32_t * experts, int n) = 0;

    // End of a token: the swaps to do now, best first. `missed` are the experts just computed on the CPU.
    virtual std::vector<swap> plan(const slot_map & resident, const std::vector<int> & missed) = 0;
};

// Tumbling window: counts over `interval` tokens; at its end an expert displaces a resident one that was used at
// least `hysteresis` + 1 times less. Vacant slots are filled at once by what was missed. `phase` (tokens) shifts the
// window, so that the layers of a model do not all swap at the same token.
std::unique_ptr<policy> make_window_policy(int n_expert, int interval, int hysteresis, int phase);

}  // namespace hot
