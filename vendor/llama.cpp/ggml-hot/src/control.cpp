#include "control.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <set>
#include <stdexcept>
#include <vector>

namespace hot {

using nlohmann::json;

static constexpr int64_t largest_mib = 1 << 24;  // 16 TiB, and its bytes fit any integer in use here

// What was expected instead. Caught by answer(), and by nobody else.
struct bad_request : std::runtime_error {
    using std::runtime_error::runtime_error;
};

static std::string error_line(const std::string & what) {
    return json{{"error", what}}.dump(-1, ' ', false, json::error_handler_t::replace);
}

// Text of the client's as an error may repeat it: not all of a 64 KiB key.
static std::string in_quotes(const std::string & text) {
    constexpr size_t enough = 40;
    return "\"" + (text.size() > enough ? text.substr(0, enough) + ".." : text) + "\"";
}

static std::string listed(const std::vector<std::string> & words) {
    std::string text;
    for (const std::string & word : words) {
        text += (text.empty() ? "" : ", ") + word;
    }
    return text;
}

//
// values
//

// json's own get<int>() would cut 22.7 to 22 and wrap 2^32 + 1 to 1
static int64_t integer(const json & request, const char * key, int64_t lowest, int64_t highest) {
    const json & value = request[key];
    const bool   fits  = value.is_number_unsigned() ? value.get<uint64_t>() <= (uint64_t) INT64_MAX : value.is_number_integer();
    if (!fits || value.get<int64_t>() < lowest || value.get<int64_t>() > highest) {
        throw bad_request(in_quotes(key) + " must be an integer from " + std::to_string(lowest) + " to " + std::to_string(highest));
    }
    return value.get<int64_t>();
}

static std::optional<int> optional_int(const json & request, const char * key, int lowest, int highest) {
    return request.contains(key) ? std::optional<int>((int) integer(request, key, lowest, highest)) : std::nullopt;
}

static std::optional<size_t> optional_mib(const json & request, const char * key, int lowest) {
    return request.contains(key) ? std::optional<size_t>((size_t) integer(request, key, lowest, largest_mib) << 20) : std::nullopt;
}

static std::optional<bool> optional_bool(const json & request, const char * key) {
    if (!request.contains(key)) {
        return std::nullopt;
    }
    if (!request[key].is_boolean()) {
        throw bad_request(in_quotes(key) + " must be true or false");
    }
    return request[key].get<bool>();
}

static std::optional<policy_kind> optional_policy(const json & request, const char * key) {
    if (!request.contains(key)) {
        return std::nullopt;
    }
    policy_kind kind{};
    if (!request[key].is_string() || !parse_policy(request[key].get<std::string>(), kind)) {
        throw bad_request(in_quotes(key) + " must be \"window\", \"lru\", \"lfru\" or \"static\"");
    }
    return kind;
}

// Absolute, because the server's working folder is not the client's.
static std::string path_of(const json & request) {
    const std::string path = request.contains("path") && request["path"].is_string() ? request["path"].get<std::string>() : "";
    if (path.empty() || path[0] != '/' || path.find('\0') != std::string::npos) {
        throw bad_request("\"path\" must be a string, an absolute path without NUL characters");
    }
    return path;
}

//
// requests
//

static json parse(const std::string & line) {
    // the parser takes a NUL for the end, so that what stands behind one would go unread
    if (line.find('\0') != std::string::npos) {
        throw bad_request("expected one line of JSON text, without NUL characters");
    }
    std::set<std::string> keys;
    std::string           repeated;
    const auto watch_keys = [&](int depth, json::parse_event_t event, json & parsed) {
        if (depth == 1 && event == json::parse_event_t::key && !keys.insert(parsed.get<std::string>()).second) {
            repeated = parsed.get<std::string>();
        }
        return true;
    };
    // neither the parser nor the destructor of what it returns recurses, however deeply the text is nested
    json request = json::parse(line, watch_keys, false);
    if (!request.is_object() || !request.contains("cmd") || !request["cmd"].is_string()) {
        throw bad_request("expected a JSON object with a string \"cmd\", for example {\"cmd\":\"stats\"}");
    }
    if (!repeated.empty()) {
        throw bad_request(in_quotes(repeated) + " must be given once");
    }
    return request;
}

static void allow_keys(const json & request, const std::string & cmd, const std::vector<std::string> & allowed) {
    for (const auto & item : request.items()) {
        if (item.key() != "cmd" && std::find(allowed.begin(), allowed.end(), item.key()) == allowed.end()) {
            throw bad_request("unknown key " + in_quotes(item.key()) + ": \"" + cmd + "\" takes " +
                              (allowed.empty() ? "no other keys" : listed(allowed)));
        }
    }
}

static changes changes_of(const json & request) {
    const std::vector<std::string> settings = {"k",          "mib",    "shared_budget", "interval",
                                               "hysteresis", "policy", "bypass",        "fetch", "upload_mib"};
    allow_keys(request, "set", settings);
    changes what;
    what.k            = optional_int(request, "k", 0, 4096);
    what.budget       = optional_mib(request, "mib", 0);
    what.shared       = optional_bool(request, "shared_budget");
    what.interval     = optional_int(request, "interval", 1, 1000000);
    what.hysteresis   = optional_int(request, "hysteresis", 0, 1000000);
    what.policy       = optional_policy(request, "policy");
    what.bypass       = optional_int(request, "bypass", 1, 64);
    what.fetch        = optional_int(request, "fetch", -1, 4096);
    what.upload_bytes = optional_mib(request, "upload_mib", 1);
    if (what.k && what.budget) {
        throw bad_request("expected \"k\" or \"mib\", not both");
    }
    if (request.size() == 1) {
        throw bad_request("\"set\" takes at least one of " + listed(settings));
    }
    return what;
}

static std::string done_or(const std::string & error) {
    return error.empty() ? "{\"ok\":true}" : error_line(error);
}

static std::string act_on(const json & request, control_target & target) {
    const std::string cmd = request["cmd"].get<std::string>();
    if (cmd == "stats") {
        allow_keys(request, cmd, {});
        return target.stats_json();
    }
    if (cmd == "set") {
        const std::string error = target.set(changes_of(request));
        return error.empty() ? target.stats_json() : error_line(error);
    }
    if (cmd == "reset") {
        allow_keys(request, cmd, {});
        target.reset();
        return done_or("");
    }
    if (cmd == "save_profile") {
        allow_keys(request, cmd, {"path"});
        return done_or(target.save_profile(request.contains("path") ? path_of(request) : ""));
    }
    if (cmd == "start_trace") {
        allow_keys(request, cmd, {"path", "weights"});
        const std::string path    = path_of(request);
        const bool        weights = optional_bool(request, "weights").value_or(false);
        return done_or(target.start_trace(path, weights));
    }
    if (cmd == "stop_trace") {
        allow_keys(request, cmd, {});
        return done_or(target.stop_trace());
    }
    throw bad_request("unknown cmd " + in_quotes(cmd) + ": expected stats, set, reset, save_profile, start_trace or stop_trace");
}

std::string answer(const std::string & request, control_target & target) {
    try {
        return act_on(parse(request), target);
    } catch (const std::exception & error) {  // a bad request; or no memory, say: the server must survive it
        return error_line(error.what());
    } catch (...) {
        return error_line("the request failed");
    }
}

}  // namespace hot
