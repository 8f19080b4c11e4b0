#include "control.h"

#include "ggml-impl.h"

#include <nlohmann/json.hpp>

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

namespace hot {

static constexpr size_t longest_request = 64 * 1024;  // bytes; a longer line is answered by an error, and dropped

static std::string error_line(const std::string & what) {
    return nlohmann::json{{"error", what}}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string answer(const std::string & request, const std::function<std::string()> & stats_json) {
    const nlohmann::json parsed = nlohmann::json::parse(request, nullptr, false);
    if (!parsed.is_object() || !parsed.contains("cmd") || !parsed["cmd"].is_string()) {
        return error_line("expected a JSON object with a string \"cmd\", for example {\"cmd\":\"stats\"}");
    }
    const std::string cmd = parsed["cmd"];
    return cmd == "stats" ? stats_json() : error_line("unknown command '" + cmd + "'; known: stats");
}

control_socket::control_socket(const std::string & path, std::function<std::string()> stats_json)
    : path_(path), stats_json_(std::move(stats_json)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(address.sun_path)) {
        GGML_LOG_WARN("ggml_hot: the socket path is longer than %zu bytes: no control socket\n", sizeof(address.sun_path) - 1);
        return;
    }
    memcpy(address.sun_path, path.c_str(), path.size() + 1);
    listener_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct stat old {};
    if (lstat(path.c_str(), &old) == 0 && S_ISSOCK(old.st_mode)) {
        unlink(path.c_str());  // left behind by a server that was killed
    }
    const mode_t old_mask = umask(0177);
    const bool bound = listener_ >= 0 && bind(listener_, (const sockaddr *) &address, sizeof(address)) == 0;
    umask(old_mask);
    if (!bound || listen(listener_, 8) != 0 || pipe2(wake_, O_CLOEXEC) != 0) {
        GGML_LOG_WARN("ggml_hot: no control socket at %s: %s\n", path.c_str(), strerror(errno));
        if (listener_ >= 0) {
            close(listener_);
            listener_ = -1;
        }
        return;
    }
    thread_ = std::thread([this] { serve(); });
}

control_socket::~control_socket() {
    if (thread_.joinable()) {
        close(wake_[1]);
        thread_.join();
        close(wake_[0]);
        close(listener_);
        unlink(path_.c_str());
    }
}

void control_socket::serve() {
    while (wait_for(listener_, POLLIN)) {
        const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
        if (client >= 0) {
            serve_client(client);
            close(client);
        }
    }
}

// Waits until the client is ready for `events`; false when the socket closes down meanwhile.
bool control_socket::wait_for(int client, short events) const {
    for (;;) {
        pollfd waiting[2] = {{client, events, 0}, {wake_[0], POLLIN, 0}};
        const int ready = poll(waiting, 2, -1);
        if (ready < 0 && errno == EINTR) {
            continue;
        }
        if (ready < 0 || waiting[1].revents) {
            return false;
        }
        return true;
    }
}

bool control_socket::send_line(int client, std::string line) const {
    line += '\n';
    for (size_t sent = 0; sent < line.size();) {
        const ssize_t n = send(client, line.data() + sent, line.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            sent += (size_t) n;
        } else if (errno != EAGAIN || !wait_for(client, POLLOUT)) {
            return false;
        }
    }
    return true;
}

// One client at a time: requests are rare and short.
void control_socket::serve_client(int client) {
    std::string pending;
    while (wait_for(client, POLLIN)) {
        char chunk[4096];
        const ssize_t n = recv(client, chunk, sizeof(chunk), 0);
        if (n <= 0) {
            return;
        }
        pending.append(chunk, (size_t) n);
        for (size_t end; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1)) {
            if (!send_line(client, answer(pending.substr(0, end), stats_json_))) {
                return;
            }
        }
        if (pending.size() > longest_request) {
            send_line(client, error_line("the request is longer than 64 KiB"));
            return;
        }
    }
}

}  // namespace hot
