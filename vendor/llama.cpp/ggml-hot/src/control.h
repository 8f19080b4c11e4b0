// A Unix socket that answers JSON lines, so that the device can be watched and changed while the server runs.
// Nothing else listens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>

#include "policy.h"

namespace hot {

// What a "set" request changes; what is absent stays.
struct changes {
    std::optional<int>         k;             // experts of a layer in VRAM, 0..4096 (0 = no slots: all cold)
    std::optional<size_t>      budget;        // "mib", 0..2^24: VRAM for the slots of each GPU, in bytes; never with k
    std::optional<bool>        shared;        // "shared_budget": one budget over all layers instead of even shares
    std::optional<int>         interval;      // 1..1000000
    std::optional<int>         hysteresis;    // 0..1000000
    std::optional<policy_kind> policy;        // "window", "lru", "static"
    std::optional<int>         bypass;        // 1..64
    std::optional<int>         fetch;         // "fetch", -1..4096: most missed experts of a block that the GPU computes; -1: as measured
    std::optional<size_t>      upload_bytes;  // "upload_mib", 1..2^24: what may be uploaded a token, in bytes
};

// What the socket acts on. Called from the socket's thread; every call returns one line of JSON or an error text.
class control_target {
public:
    virtual ~control_target() = default;
    virtual std::string stats_json() = 0;                                           // one line
    virtual std::string set(const changes & what) = 0;                              // "" or an error
    virtual void        reset() = 0;                                                // counters to zero
    virtual std::string save_profile(const std::string & path) = 0;                 // "" path: the configured one; "" or an error
    virtual std::string start_trace(const std::string & path, bool weights) = 0;    // "" or an error
    virtual std::string stop_trace() = 0;                                           // "" or an error
};

// One request line in, one answer line out (no newline). Requests and answers:
//   {"cmd":"stats"}                                    the statistics object
//   {"cmd":"set","k":22,"policy":"lru",..}             the statistics object after the change; at least one setting
//   {"cmd":"reset"}                                    {"ok":true}
//   {"cmd":"save_profile"[,"path":"/abs/file"]}        {"ok":true}
//   {"cmd":"start_trace","path":"/abs/file"[,"weights":true]}  {"ok":true}
//   {"cmd":"stop_trace"}                               {"ok":true}
// Anything else, an unknown or repeated key, a wrong type, a value out of range: {"error":"what was expected"}, and
// nothing changes. Never throws.
std::string answer(const std::string & request, control_target & target);

class control_socket {
public:
    // Listens at `path` (mode 0600). A socket that nobody answers (left by a killed server) is replaced; one that
    // another process serves is left alone, and this one listens at `path`.<pid> instead and says so in the log.
    // On failure it says so in the log and is idle.
    control_socket(const std::string & path, control_target & target);
    ~control_socket();  // waits for a request that is being acted on, never for a client
    control_socket(const control_socket &) = delete;
    control_socket & operator=(const control_socket &) = delete;

    const std::string & path() const { return path_; }  // where it listens; empty when idle

private:
    bool listen_at(const std::string & path);
    void serve();

    std::string      path_;
    control_target & target_;
    int listener_ = -1;
    int wake_[2]  = {-1, -1};     // a pipe: what we write to it ends the thread
    uint64_t file_[2] = {0, 0};   // device and inode of the socket's file, to remove that one and no other
    std::thread thread_;
};

}  // namespace hot
