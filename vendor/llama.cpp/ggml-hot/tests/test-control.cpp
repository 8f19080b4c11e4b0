// The control socket: what requests do and what they are refused for; clients of every kind; whose file is whose.
#include "../src/control.h"
#include "check.h"

#include <atomic>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <pthread.h>
#include <stdexcept>
#include <string>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <vector>

//
// what the socket acts on: writes down what it was told
//

class recorder final : public hot::control_target {
public:
    std::string stats_json() override { return "{\"hits\":7}"; }
    std::string set(const hot::changes & what) override {
        last = what;
        return note("set");
    }
    void        reset() override { note("reset"); }
    std::string save_profile(const std::string & path) override { return note("save_profile " + path); }
    std::string start_trace(const std::string & path, bool weights) override {
        return note("start_trace " + path + (weights ? " with weights" : ""));
    }
    std::string stop_trace() override { return note("stop_trace"); }

    std::vector<std::string> told;
    hot::changes             last;
    std::string              refusal;  // what it answers
    bool                     throws = false;

private:
    std::string note(const std::string & what) {
        told.push_back(what);
        if (throws) {
            throw std::runtime_error("out of slots");
        }
        return refusal;
    }
};

// For the socket's tests, where it is called from another thread.
class plain_target final : public hot::control_target {
public:
    std::string stats_json() override { return "{\"hits\":7}"; }
    std::string set(const hot::changes &) override { return ""; }
    void        reset() override { resets++; }
    std::string save_profile(const std::string &) override { return ""; }
    std::string start_trace(const std::string &, bool) override { return ""; }
    std::string stop_trace() override { return ""; }

    std::atomic<int> resets{0};
};

//
// requests
//

static const std::string stats_line = "{\"hits\":7}";
static const std::string ok_line    = "{\"ok\":true}";

static bool holds(const std::string & text, const std::string & part) {
    return text.find(part) != std::string::npos;
}

static void a_request_reaches_the_target_and_its_answer_the_client() {
    recorder target;
    CHECK(hot::answer("{\"cmd\":\"stats\"}", target) == stats_line, "stats");
    CHECK(target.told.empty(), "stats changes nothing");
    const struct {
        const char * request;
        const char * told;
    } cases[] = {
        {"{\"cmd\":\"reset\"}", "reset"},
        {" { \"cmd\" : \"reset\" } \r", "reset"},
        {"{\"cmd\":\"save_profile\"}", "save_profile "},
        {"{\"cmd\":\"save_profile\",\"path\":\"/p/a b\"}", "save_profile /p/a b"},
        {"{\"cmd\":\"start_trace\",\"path\":\"/t\"}", "start_trace /t"},
        {"{\"path\":\"/t\",\"weights\":false,\"cmd\":\"start_trace\"}", "start_trace /t"},
        {"{\"cmd\":\"start_trace\",\"path\":\"/t\",\"weights\":true}", "start_trace /t with weights"},
        {"{\"cmd\":\"stop_trace\"}", "stop_trace"},
    };
    for (const auto & c : cases) {
        target.told.clear();
        const std::string line = hot::answer(c.request, target);
        CHECK(line == ok_line, "%s: %s", c.request, line.c_str());
        CHECK(target.told == std::vector<std::string>{c.told}, "%s", c.request);
    }
}

static void set_passes_what_was_named_and_nothing_else() {
    recorder target;
    CHECK(hot::answer("{\"cmd\":\"set\",\"k\":22}", target) == stats_line, "answers with the statistics");
    CHECK(target.last.k == 22, "k");
    CHECK(!target.last.budget && !target.last.shared && !target.last.interval && !target.last.hysteresis && !target.last.policy &&
              !target.last.bypass && !target.last.upload_bytes, "only k was named");

    hot::answer("{\"cmd\":\"set\",\"mib\":3,\"shared_budget\":true,\"interval\":40,\"hysteresis\":2,\"policy\":\"static\","
                "\"bypass\":8,\"upload_mib\":5}", target);
    CHECK(!target.last.k, "k was not named");
    CHECK(target.last.budget == size_t(3) << 20, "MiB become bytes");
    CHECK(target.last.shared == true, "shared_budget");
    CHECK(target.last.interval == 40, "interval");
    CHECK(target.last.hysteresis == 2, "hysteresis");
    CHECK(target.last.policy == hot::policy_kind::fixed, "policy");
    CHECK(target.last.bypass == 8, "bypass");
    CHECK(target.last.upload_bytes == size_t(5) << 20, "upload_mib");
    CHECK(target.told.size() == 2, "one call each");
}

static void every_setting_has_its_range() {
    const struct {
        const char * key;
        long long    lowest, highest;
    } ranges[] = {
        {"k", 0, 4096},        {"mib", 0, 1 << 24},  {"interval", 1, 1000000}, {"hysteresis", 0, 1000000},
        {"bypass", 1, 64},     {"upload_mib", 1, 1 << 24},
    };
    for (const auto & r : ranges) {
        const auto set = [&](const std::string & value) {
            recorder          target;
            const std::string line = hot::answer("{\"cmd\":\"set\",\"" + std::string(r.key) + "\":" + value + "}", target);
            CHECK((line == stats_line) == (target.told.size() == 1), "%s", line.c_str());
            if (line != stats_line) {
                CHECK(holds(line, std::string("\\\"") + r.key + "\\\" must be an integer from " + std::to_string(r.lowest) + " to " +
                                      std::to_string(r.highest)), "%s", line.c_str());
            }
            return line == stats_line;
        };
        CHECK(set(std::to_string(r.lowest)) && set(std::to_string(r.highest)), "%s: the ends belong to the range", r.key);
        CHECK(!set(std::to_string(r.lowest - 1)) && !set(std::to_string(r.highest + 1)), "%s: what lies beyond does not", r.key);
        for (const char * bad : {"1.5", "1.0", "1e0", "true", "null", "\"1\"", "[1]", "{}", "4294967297", "-4294967295",
                                 "18446744073709551615", "18446744073709551617", "-9223372036854775808", "9223372036854775808"}) {
            CHECK(!set(bad), "%s: %s", r.key, bad);
        }
    }
    recorder target;
    hot::answer("{\"cmd\":\"set\",\"mib\":16777216}", target);
    CHECK(target.last.budget == size_t(1) << 44, "the largest budget keeps all its bits");
}

static void a_bad_request_is_told_what_was_expected_and_changes_nothing() {
    const struct {
        const char * request;
        const char * expected;
    } cases[] = {
        {"", "expected a JSON object"},
        {"{", "expected a JSON object"},
        {"[]", "expected a JSON object"},
        {"null", "expected a JSON object"},
        {"7", "expected a JSON object"},
        {"{\"cmd\":\"reset\"} x", "expected a JSON object"},
        {"{\"cmd\":\"reset\"}{\"cmd\":\"reset\"}", "expected a JSON object"},
        {"{\"cmd\":\"reset\",}", "expected a JSON object"},
        {"{'cmd':'reset'}", "expected a JSON object"},
        {"{\"cmd\":\"reset\" /* now */}", "expected a JSON object"},
        {"{}", "expected a JSON object with a string"},
        {"{\"cmd\":5}", "expected a JSON object with a string"},
        {"{\"CMD\":\"reset\"}", "expected a JSON object with a string"},
        {"{\"cmd\":\"\xff\"}", "expected a JSON object"},
        {"\xff\xfe{\"cmd\":\"reset\"}", "expected a JSON object"},
        {"{\"cmd\":\"reset\",\"k\":1e999}", "expected a JSON object"},
        {"{\"cmd\":\"reboot\"}", "expected stats, set, reset, save_profile, start_trace or stop_trace"},
        {"{\"cmd\":\"reset \"}", "expected stats, set, reset"},
        {"{\"cmd\":\"reset\",\"cmd\":\"reset\"}", "\\\"cmd\\\" must be given once"},
        {"{\"cmd\":\"set\",\"k\":1,\"k\":1}", "\\\"k\\\" must be given once"},
        {"{\"cmd\":\"stats\",\"k\":1}", "\\\"stats\\\" takes no other keys"},
        {"{\"cmd\":\"reset\",\"all\":true}", "\\\"reset\\\" takes no other keys"},
        {"{\"cmd\":\"stop_trace\",\"path\":\"/t\"}", "\\\"stop_trace\\\" takes no other keys"},
        {"{\"cmd\":\"save_profile\",\"weights\":true}", "\\\"save_profile\\\" takes path"},
        {"{\"cmd\":\"save_profile\",\"path\":\"\"}", "\\\"path\\\" must be a string, an absolute path"},
        {"{\"cmd\":\"save_profile\",\"path\":null}", "\\\"path\\\" must be a string, an absolute path"},
        {"{\"cmd\":\"save_profile\",\"path\":\"here\"}", "\\\"path\\\" must be a string, an absolute path"},
        {"{\"cmd\":\"save_profile\",\"path\":\"/a\\u0000b\"}", "\\\"path\\\" must be a string, an absolute path"},
        {"{\"cmd\":\"start_trace\"}", "\\\"path\\\" must be a string, an absolute path"},
        {"{\"cmd\":\"start_trace\",\"path\":\"/t\",\"weights\":1}", "\\\"weights\\\" must be true or false"},
        {"{\"cmd\":\"start_trace\",\"path\":\"/t\",\"layers\":1}", "\\\"start_trace\\\" takes path, weights"},
        {"{\"cmd\":\"set\"}", "at least one of k, mib, shared_budget"},
        {"{\"cmd\":\"set\",\"slots\":1}", "\\\"set\\\" takes k, mib, shared_budget, interval, hysteresis, policy, bypass, fetch, upload_mib"},
        {"{\"cmd\":\"set\",\"k\":1,\"K\":1}", "unknown key \\\"K\\\""},
        {"{\"cmd\":\"set\",\"k\":1,\"mib\":1}", "not both"},
        {"{\"cmd\":\"set\",\"k\":1,\"bypass\":65}", "\\\"bypass\\\" must be an integer from 1 to 64"},
        {"{\"cmd\":\"set\",\"shared_budget\":0}", "\\\"shared_budget\\\" must be true or false"},
        {"{\"cmd\":\"set\",\"policy\":\"LRU\"}", "\\\"policy\\\" must be \\\"window\\\", \\\"lru\\\", \\\"lfru\\\" or \\\"static\\\""},
        {"{\"cmd\":\"set\",\"policy\":1}", "\\\"policy\\\" must be \\\"window\\\""},
    };
    for (const auto & c : cases) {
        recorder          target;
        const std::string line = hot::answer(c.request, target);
        CHECK(line.rfind("{\"error\":\"", 0) == 0 && holds(line, c.expected), "%s: %s", c.request, line.c_str());
        CHECK(target.told.empty(), "%s", c.request);
    }
    recorder          target;
    const std::string line = hot::answer(std::string("{\"cmd\":\"reset\"}\0x", 17), target);
    CHECK(holds(line, "without NUL") && target.told.empty(), "nothing may hide behind a NUL: %s", line.c_str());
}

static void an_error_line_is_short_valid_text_whatever_it_repeats() {
    recorder          target;
    const std::string line = hot::answer("{\"cmd\":\"set\",\"" + std::string(60000, 'x') + "\":1}", target);
    CHECK(line.size() < 300 && holds(line, "xxx..") && holds(line, "takes k"), "%zu bytes", line.size());

    target.refusal           = "cannot write /tmp/\xff\n\"x\"";
    const std::string reason = hot::answer("{\"cmd\":\"stop_trace\"}", target);
    CHECK(reason == "{\"error\":\"cannot write /tmp/\xef\xbf\xbd\\n\\\"x\\\"\"}", "%s", reason.c_str());
    CHECK(hot::answer("{\"cmd\":\"set\",\"k\":1}", target) == reason, "set must say why, too");
}

static void an_exception_becomes_an_error_line() {
    recorder target;
    target.throws = true;
    for (const char * request : {"{\"cmd\":\"set\",\"k\":1}", "{\"cmd\":\"reset\"}", "{\"cmd\":\"save_profile\"}",
                                 "{\"cmd\":\"start_trace\",\"path\":\"/t\"}", "{\"cmd\":\"stop_trace\"}"}) {
        CHECK(hot::answer(request, target) == "{\"error\":\"out of slots\"}", "%s", request);
    }
}

// On a stack that a recursion of 30,000 levels, of even 16 bytes each, would overflow.
static void nesting_without_end_does_not_overflow_the_stack() {
    const auto run = [](void *) -> void * {
        std::string objects = "{\"cmd\":";
        for (int i = 0; i < 10000; i++) {
            objects += "{\"a\":";
        }
        const std::string closed_array = std::string(30000, '[') + std::string(30000, ']');
        recorder target;
        for (const std::string & deep : {std::string(60 * 1024, '['), std::string(60 * 1024, '{'), objects, closed_array,
                                         "{\"cmd\":" + closed_array + "}", "{\"cmd\":\"set\",\"k\":" + closed_array + "}",
                                         "{\"cmd\":\"stats\",\"" + closed_array + "\":1}"}) {
            CHECK(holds(hot::answer(deep, target), "\"error\""), "%.40s", deep.c_str());
        }
        CHECK(target.told.empty(), "nothing may have been called");
        return nullptr;
    };
    pthread_attr_t attributes;
    pthread_t      thread;
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstacksize(&attributes, 256 * 1024) == 0, "a small stack");
    CHECK(pthread_create(&thread, &attributes, run, nullptr) == 0, "a thread");
    pthread_join(thread, nullptr);
    pthread_attr_destroy(&attributes);
}

//
// clients
//

static std::string folder;  // of this run, removed at its end

static sockaddr_un address_of(const std::string & path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    return address;
}

// Closes itself. Blocking, so a test that gets no answer hangs, and ctest's time limit says so.
class connection {
public:
    explicit connection(const std::string & path) : fd(socket(AF_UNIX, SOCK_STREAM, 0)) {
        const sockaddr_un address = address_of(path);
        connected                 = connect(fd, (const sockaddr *) &address, sizeof(address)) == 0;
    }
    ~connection() { close(fd); }
    connection(const connection &) = delete;
    connection & operator=(const connection &) = delete;

    bool say(const std::string & text) { return send(fd, text.data(), text.size(), MSG_NOSIGNAL) == (ssize_t) text.size(); }

    // A line without its newline; "(closed)" at the end.
    std::string line() {
        std::string text;
        for (char c; recv(fd, &c, 1, 0) == 1; text += c) {
            if (c == '\n') {
                return text;
            }
        }
        return "(closed)";
    }

    std::string ask(const std::string & request) { return say(request + "\n") ? line() : "(not sent)"; }

    int  fd;
    bool connected;
};

static const std::string stats_request = "{\"cmd\":\"stats\"}";

static bool exists(const std::string & path) {
    struct stat info {};
    return lstat(path.c_str(), &info) == 0;
}

static void a_client_may_ask_again_and_again_also_after_garbage() {
    plain_target        target;
    hot::control_socket control(folder + "/s", target);
    connection          client(control.path());
    CHECK(client.ask(stats_request) == stats_line, "the first");
    for (const char * garbage : {"", "garbage", "\xff\xfe\x80", "{\"cmd\":", "\x01\x02\x03"}) {
        CHECK(holds(client.ask(garbage), "\"error\""), "%s", garbage);
    }
    CHECK(client.ask(stats_request) == stats_line, "after garbage");
}

static void requests_may_come_in_pieces_or_many_at_once() {
    plain_target        target;
    hot::control_socket control(folder + "/s", target);
    connection          client(control.path());
    for (const char c : stats_request + "\n") {
        CHECK(client.say(std::string(1, c)), "a byte");
    }
    CHECK(client.line() == stats_line, "byte by byte");

    std::string many;
    for (int i = 0; i < 3000; i++) {
        many += i % 2 ? "{\"cmd\":\"reset\"}\n" : stats_request + "\n";
    }
    CHECK(client.say(many), "all at once");
    int in_order = 0;
    for (int i = 0; i < 3000; i++) {
        in_order += client.line() == (i % 2 ? ok_line : stats_line);
    }
    CHECK(in_order == 3000, "%d answers in order", in_order);
    CHECK(target.resets == 1500, "%d resets", target.resets.load());
}

static void a_client_that_only_stopped_sending_still_gets_its_answers() {
    plain_target        target;
    hot::control_socket control(folder + "/s", target);
    connection          client(control.path());
    CHECK(client.say(stats_request + "\n" + stats_request + "\n{\"cmd\":\"reset\"}"), "two and a half requests");
    CHECK(shutdown(client.fd, SHUT_WR) == 0, "shutdown");
    CHECK(client.line() == stats_line && client.line() == stats_line, "both answers");
    CHECK(client.line() == "(closed)", "then the end");
    CHECK(target.resets == 0, "half a request must not act");
}

static void a_line_of_64_kib_is_read_and_a_longer_one_ends_the_connection() {
    plain_target        target;
    hot::control_socket control(folder + "/s", target);
    connection          client(control.path());
    CHECK(client.ask(stats_request + std::string(64 * 1024 - stats_request.size(), ' ')) == stats_line, "just 64 KiB");
    CHECK(holds(client.ask(stats_request + std::string(64 * 1024 + 1 - stats_request.size(), ' ')), "64 KiB"), "one byte more");
    CHECK(client.line() == "(closed)", "then the end");

    connection endless(control.path());
    while (endless.say(std::string(4096, 'x'))) {  // until the other side has closed
    }
    CHECK(holds(endless.line(), "64 KiB"), "a line without end");
    CHECK(connection(control.path()).ask(stats_request) == stats_line, "others are served");
}

static void an_idle_client_keeps_nobody_waiting() {
    plain_target        target;
    hot::control_socket control(folder + "/s", target);
    connection          idle(control.path());
    connection          halfway(control.path());
    CHECK(halfway.say("{\"cmd\":"), "half a request");
    CHECK(connection(control.path()).ask(stats_request) == stats_line, "another client");
    CHECK(halfway.ask("\"stats\"}") == stats_line, "the other half");
    CHECK(idle.ask(stats_request) == stats_line, "the idle one, at last");
}

static void the_seventeenth_client_is_turned_away_until_one_leaves() {
    plain_target        target;
    hot::control_socket control(folder + "/s", target);
    std::vector<std::unique_ptr<connection>> clients;
    for (int i = 0; i < 16; i++) {
        clients.push_back(std::make_unique<connection>(control.path()));
        CHECK(clients.back()->ask(stats_request) == stats_line, "client %d", i);
    }
    connection surplus(control.path());
    CHECK(holds(surplus.line(), "at most 16 connections"), "the error line");
    CHECK(surplus.line() == "(closed)", "then the end");
    CHECK(clients[3]->ask(stats_request) == stats_line, "the others are served");
    clients.pop_back();
    std::string line;
    while (!holds(line, "hits")) {  // the socket may hear of the newcomer before it hears of the leaver
        line = connection(control.path()).ask(stats_request);
    }
    CHECK(line == stats_line, "a place is free again");
}

static void hundreds_of_clients_come_and_go() {
    plain_target        target;
    hot::control_socket control(folder + "/s", target);
    int                 answered = 0;
    for (int i = 0; i < 200; i++) {
        connection client(control.path());
        if (i % 4 == 0) {
            client.say("{\"cmd\":\"sta");  // and gone
        } else if (i % 4 == 1) {
            client.say(stats_request + "\n");  // gone before the answer
        } else if (i % 4 == 2) {
            answered += holds(client.ask(stats_request), "hits");
        }
    }
    // those that left without a word may still be counted when the next one comes, so not all need have got in
    CHECK(answered > 0, "none of them was served");
    std::string line;
    while (!holds(line, "hits")) {
        line = connection(control.path()).ask(stats_request);
    }
    std::vector<std::unique_ptr<connection>> crowd;
    for (int i = 0; i < 200; i++) {
        crowd.push_back(std::make_unique<connection>(control.path()));
        CHECK(crowd.back()->connected, "connection %d", i);
    }
    int served = 0;
    for (auto & client : crowd) {
        client->say(stats_request + "\n");
        served += client->line() == stats_line;
    }
    CHECK(served <= 16 && served >= 15, "%d of a crowd served", served);
}

static void a_client_that_asks_and_never_reads_is_dropped_and_others_are_served() {
    plain_target        target;
    hot::control_socket control(folder + "/s", target);
    connection          deaf(control.path());
    std::string         requests;
    while (requests.size() < 60000) {
        requests += "{\"cmd\":\"" + std::string(40, 'x') + "\"}\n";
    }
    while (deaf.say(requests)) {  // ends when it is dropped
        CHECK(connection(control.path()).ask(stats_request) == stats_line, "another client, meanwhile");
    }
    CHECK(connection(control.path()).ask(stats_request) == stats_line, "another client, afterwards");
}

static void a_client_that_reads_late_gets_all_its_answers() {
    plain_target        target;
    hot::control_socket control(folder + "/s", target);
    connection          late(control.path());
    constexpr int       n = 5000;  // 500 KB of answers, more than a socket's buffers hold
    std::string         requests;
    for (int i = 0; i < n; i++) {
        requests += "x\n";
    }
    CHECK(late.say(requests) && shutdown(late.fd, SHUT_WR) == 0, "all at once, and no more");
    CHECK(connection(control.path()).ask(stats_request) == stats_line, "another client, meanwhile");
    int answers = 0;
    for (int i = 0; i < n; i++) {
        answers += holds(late.line(), "expected a JSON object");
    }
    CHECK(answers == n, "%d answers", answers);
}

static void the_end_waits_for_no_client() {
    plain_target target;
    auto         control = std::make_unique<hot::control_socket>(folder + "/s", target);
    connection   idle(control->path());
    connection   halfway(control->path());
    connection   deaf(control->path());
    halfway.say("{\"cmd\":");
    for (int i = 0; i < 3; i++) {
        deaf.say(std::string(30000, '\n'));
    }
    CHECK(connection(control->path()).ask(stats_request) == stats_line, "all have been accepted");
    control.reset();  // hangs, if it is wrong
    CHECK(idle.line() == "(closed)" && halfway.line() == "(closed)", "they learn of it");
    CHECK(!exists(folder + "/s"), "the file is gone");
}

static void running_out_of_file_descriptors_is_survived() {
    plain_target        target;
    hot::control_socket control(folder + "/s", target);
    rlimit              usual{};
    getrlimit(RLIMIT_NOFILE, &usual);
    connection before(control.path());
    CHECK(before.ask(stats_request) == stats_line, "accepted in time");
    const int next_free = dup(before.fd);
    close(next_free);
    rlimit none = usual;
    none.rlim_cur = (rlim_t) next_free + 1;  // room for our end of the connection alone
    setrlimit(RLIMIT_NOFILE, &none);
    connection during(control.path());
    CHECK(during.connected, "in the queue");
    CHECK(before.ask(stats_request) == stats_line, "a client that is there already is served");
    setrlimit(RLIMIT_NOFILE, &usual);
    CHECK(during.ask(stats_request) == stats_line, "the other as soon as it can be accepted");
}

//
// files
//

static void nobody_else_may_connect_and_the_umask_stays() {
    plain_target target;
    const mode_t usual = umask(0);
    {
        hot::control_socket control(folder + "/s", target);
        struct stat         info {};
        CHECK(stat(control.path().c_str(), &info) == 0 && (info.st_mode & 07777) == 0600, "mode %o", info.st_mode & 07777);
    }
    CHECK(umask(usual) == 0, "the umask is the process's");
    CHECK(!exists(folder + "/s"), "the file is gone with the socket");
}

static void a_socket_that_is_served_is_left_alone() {
    plain_target        target;
    const std::string   mine = folder + "/s." + std::to_string(getpid());
    {
        hot::control_socket first(folder + "/s", target);
        hot::control_socket second(folder + "/s", target);
        hot::control_socket third(folder + "/s", target);
        CHECK(first.path() == folder + "/s", "%s", first.path().c_str());
        CHECK(second.path() == mine, "%s", second.path().c_str());
        CHECK(third.path().empty(), "both are taken: it is idle");
        CHECK(connection(first.path()).ask(stats_request) == stats_line, "the first");
        CHECK(connection(second.path()).ask(stats_request) == stats_line, "the second");
        struct stat info {};
        CHECK(stat(mine.c_str(), &info) == 0 && (info.st_mode & 07777) == 0600, "mode %o", info.st_mode & 07777);
    }
    CHECK(!exists(folder + "/s") && !exists(mine), "both files are gone");
}

static void a_listener_that_never_accepts_counts_as_alive() {
    plain_target      target;
    const std::string path    = folder + "/busy";
    const sockaddr_un address = address_of(path);
    const int         busy    = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(busy, (const sockaddr *) &address, sizeof(address)) == 0 && listen(busy, 0) == 0, "a listener");
    connection fills_its_queue(path);
    {
        hot::control_socket control(path, target);
        CHECK(control.path() == path + "." + std::to_string(getpid()), "%s", control.path().c_str());
        CHECK(connection(control.path()).ask(stats_request) == stats_line, "beside it");
    }
    CHECK(exists(path), "its file must survive");
    close(busy);
    unlink(path.c_str());
}

static void a_socket_that_a_killed_server_left_is_replaced() {
    plain_target      target;
    const std::string path    = folder + "/stale";
    const sockaddr_un address = address_of(path);
    const int         killed  = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(bind(killed, (const sockaddr *) &address, sizeof(address)) == 0 && listen(killed, 1) == 0, "a listener");
    close(killed);  // its file stays
    {
        hot::control_socket control(path, target);
        CHECK(control.path() == path, "%s", control.path().c_str());
        CHECK(connection(path).ask(stats_request) == stats_line, "in its place");
    }
    CHECK(!exists(path), "the file is gone");
}

static void what_is_no_socket_survives_and_the_control_is_idle() {
    plain_target      target;
    const std::string file = folder + "/file", link = folder + "/link";
    close(open(file.c_str(), O_CREAT | O_WRONLY, 0600));
    CHECK(symlink("nowhere", link.c_str()) == 0, "symlink");
    for (const std::string & path : {file, link, folder}) {
        {
            hot::control_socket control(path, target);
            CHECK(control.path().empty(), "%s", control.path().c_str());
        }
        CHECK(exists(path), "%s", path.c_str());
        CHECK(!exists(path + "." + std::to_string(getpid())), "%s", path.c_str());
    }
    unlink(file.c_str());
    unlink(link.c_str());
}

static void a_path_where_no_socket_can_be_leaves_the_control_idle() {
    plain_target target;
    for (const std::string & path : {std::string(), folder + "/none/s", folder + "/" + std::string(200, 'x')}) {
        hot::control_socket control(path, target);
        CHECK(control.path().empty(), "%s", path.c_str());
    }
}

static void a_file_that_took_our_place_is_not_removed() {
    plain_target      target;
    const std::string path = folder + "/s";
    {
        hot::control_socket control(path, target);
        unlink(path.c_str());
        close(open(path.c_str(), O_CREAT | O_WRONLY, 0600));
    }
    CHECK(exists(path), "it is somebody else's");
    unlink(path.c_str());
}

static int open_files() {
    int   n   = 0;
    DIR * dir = opendir("/proc/self/fd");
    while (dir && readdir(dir)) {
        n++;
    }
    if (dir) {
        closedir(dir);
    }
    return n;
}

int main() {
    char name[] = "/tmp/hot-control-XXXXXX";
    folder      = mkdtemp(name) ? name : "";
    CHECK(!folder.empty(), "a folder to work in");

    a_request_reaches_the_target_and_its_answer_the_client();
    set_passes_what_was_named_and_nothing_else();
    every_setting_has_its_range();
    a_bad_request_is_told_what_was_expected_and_changes_nothing();
    an_error_line_is_short_valid_text_whatever_it_repeats();
    an_exception_becomes_an_error_line();
    nesting_without_end_does_not_overflow_the_stack();

    const int files_before = open_files();
    a_client_may_ask_again_and_again_also_after_garbage();
    requests_may_come_in_pieces_or_many_at_once();
    a_client_that_only_stopped_sending_still_gets_its_answers();
    a_line_of_64_kib_is_read_and_a_longer_one_ends_the_connection();
    an_idle_client_keeps_nobody_waiting();
    the_seventeenth_client_is_turned_away_until_one_leaves();
    hundreds_of_clients_come_and_go();
    a_client_that_asks_and_never_reads_is_dropped_and_others_are_served();
    a_client_that_reads_late_gets_all_its_answers();
    the_end_waits_for_no_client();
    running_out_of_file_descriptors_is_survived();

    nobody_else_may_connect_and_the_umask_stays();
    a_socket_that_is_served_is_left_alone();
    a_listener_that_never_accepts_counts_as_alive();
    a_socket_that_a_killed_server_left_is_replaced();
    what_is_no_socket_survives_and_the_control_is_idle();
    a_path_where_no_socket_can_be_leaves_the_control_idle();
    a_file_that_took_our_place_is_not_removed();
    CHECK(open_files() == files_before, "%d file descriptors leaked", open_files() - files_before);

    CHECK(rmdir(folder.c_str()) == 0, "something was left in %s", folder.c_str());
    return verdict("control");
}
