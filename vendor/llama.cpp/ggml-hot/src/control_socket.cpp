#include "control.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <system_error>
#include <unistd.h>
#include <vector>

namespace hot {

static constexpr size_t longest_request = 64 * 1024;  // bytes without the newline
static constexpr size_t most_unread     = 1 << 20;    // bytes; who asks more with so many answers unread is dropped
static constexpr size_t most_clients    = 16;
static constexpr int    retry_ms        = 200;        // without file descriptors nobody can be accepted: try again then

//
// a client
//

// A connection. Nothing about it ever waits, so that no client can keep another one, or the end, waiting.
class client {
public:
    explicit client(int fd) : fd_(fd) {}
    ~client() { close(fd_); }
    client(const client &) = delete;
    client & operator=(const client &) = delete;

    int   fd() const { return fd_; }
    bool  has_request() const { return asked_.size() > longest_request || asked_.find('\n') != std::string::npos; }
    short events() const { return (short) ((ended_ || has_request() ? 0 : POLLIN) | (unread_.empty() ? 0 : POLLOUT)); }

    bool advance(bool readable, control_target & target);

private:
    bool receive();
    bool answer_one(control_target & target);
    bool deliver();

    int         fd_;
    std::string asked_;          // received, not yet answered
    std::string unread_;         // answers that it has not taken yet
    bool        ended_ = false;  // sends no more, or may not
};

// Receives a little, answers one request at most, sends what fits. False when the connection is over.
bool client::advance(bool readable, control_target & target) {
    if (readable && !ended_ && !has_request() && !receive()) {
        return false;
    }
    if (has_request() && !answer_one(target)) {
        return false;
    }
    return deliver() && !(ended_ && !has_request() && unread_.empty());
}

bool client::receive() {
    char          chunk[4096];
    const ssize_t n = recv(fd_, chunk, sizeof(chunk), MSG_DONTWAIT);
    if (n < 0) {
        return errno == EAGAIN || errno == EINTR;
    }
    asked_.append(chunk, (size_t) n);
    ended_ = n == 0;  // perhaps of its half only: it may still be reading
    return true;
}

bool client::answer_one(control_target & target) {
    if (unread_.size() > most_unread) {
        return false;
    }
    const size_t end = asked_.find('\n');
    if (std::min(end, asked_.size()) > longest_request) {
        unread_ += "{\"error\":\"expected a line of at most 64 KiB\"}\n";
        asked_.clear();
        ended_ = true;
        return true;
    }
    unread_ += answer(asked_.substr(0, end), target) + '\n';
    asked_.erase(0, end + 1);
    return true;
}

bool client::deliver() {
    if (unread_.empty()) {
        return true;
    }
    const ssize_t n = send(fd_, unread_.data(), unread_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
        return errno == EAGAIN || errno == EINTR;
    }
    unread_.erase(0, (size_t) n);
    return true;
}

//
// the socket's file
//

namespace {

// Servers that start at once, with one path in their environment, look, replace and bind one after the other, so that
// none takes a socket for abandoned that another has just bound. Gives up after a second: it is a courtesy.
class turn_in_folder {
public:
    explicit turn_in_folder(const std::string & path) {
        const size_t      slash  = path.rfind('/');
        const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
        fd_ = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        for (int i = 0; fd_ >= 0 && i < 100 && flock(fd_, LOCK_EX | LOCK_NB) != 0; i++) {
            usleep(10000);
        }
    }
    ~turn_in_folder() {
        if (fd_ >= 0) {
            close(fd_);
        }
    }
    turn_in_folder(const turn_in_folder &) = delete;
    turn_in_folder & operator=(const turn_in_folder &) = delete;

private:
    int fd_;
};

}  // namespace

// Only a refused connection proves that nobody listens: a full queue or a missing permission means that somebody does.
static bool is_abandoned(const sockaddr_un & address) {
    const int  fd      = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    const bool refused = fd >= 0 && connect(fd, (const sockaddr *) &address, sizeof(address)) != 0 && errno == ECONNREFUSED;
    if (fd >= 0) {
        close(fd);
    }
    return refused;
}

// 0 or an errno: EADDRINUSE when somebody serves a socket there, EEXIST when what is there is no socket.
static int bind_at(int listener, const std::string & path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof(address.sun_path)) {
        return path.empty() ? EINVAL : ENAMETOOLONG;
    }
    memcpy(address.sun_path, path.c_str(), path.size() + 1);
    const auto bound = [&] { return bind(listener, (const sockaddr *) &address, sizeof(address)) == 0; };
    if (bound()) {
        return 0;
    }
    if (errno != EADDRINUSE) {
        return errno;
    }
    struct stat there {};
    if (lstat(path.c_str(), &there) == 0) {
        if (!S_ISSOCK(there.st_mode)) {
            return EEXIST;
        }
        if (!is_abandoned(address)) {
            return EADDRINUSE;
        }
        unlink(path.c_str());
    }
    return bound() ? 0 : errno;
}

//
// the control socket
//

control_socket::control_socket(const std::string & path, control_target & target) : target_(target) {
    const turn_in_folder turn(path);
    const std::string    second = path + "." + std::to_string(getpid());
    if (listen_at(path)) {
        path_ = path;
    } else if (errno == EADDRINUSE && listen_at(second)) {
        GGML_LOG_WARN("ggml_hot: %s is served by another: the control socket is %s\n", path.c_str(), second.c_str());
        path_ = second;
    } else {
        GGML_LOG_WARN("ggml_hot: no control socket at %s: %s\n", path.c_str(), strerror(errno));
    }
}

// False, with errno, when it cannot; nothing is left behind then.
bool control_socket::listen_at(const std::string & path) {
    listener_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    // bind gives the file this mode, so that it never has a wider one; the umask is the whole process's
    int error = listener_ < 0 || fchmod(listener_, 0600) != 0 ? errno : bind_at(listener_, path);
    const bool bound = error == 0;
    struct stat file {};
    if (bound && (listen(listener_, most_clients) != 0 || lstat(path.c_str(), &file) != 0 || pipe2(wake_, O_CLOEXEC) != 0)) {
        error = errno;
    }
    file_[0] = file.st_dev;
    file_[1] = file.st_ino;
    if (error == 0) {
        try {
            thread_ = std::thread([this] { serve(); });
            return true;
        } catch (const std::system_error & no_thread) {
            error = no_thread.code().value();
        }
    }
    if (bound) {
        unlink(path.c_str());
    }
    for (int * fd : {&listener_, &wake_[0], &wake_[1]}) {
        if (*fd >= 0) {
            close(*fd);
        }
        *fd = -1;
    }
    errno = error;
    return false;
}

control_socket::~control_socket() {
    if (!thread_.joinable()) {
        return;
    }
    while (write(wake_[1], "", 1) < 0 && errno == EINTR) {
    }
    thread_.join();
    // before the listener closes, or somebody might take the file for abandoned and put theirs there
    struct stat file {};
    if (lstat(path_.c_str(), &file) == 0 && file.st_dev == file_[0] && file.st_ino == file_[1]) {
        unlink(path_.c_str());
    }
    for (int fd : {listener_, wake_[0], wake_[1]}) {
        close(fd);
    }
}

// False when there was somebody and no way to accept them.
static bool accept_one(int listener, std::vector<std::unique_ptr<client>> & clients) {
    const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) {
        return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED;
    }
    auto newcomer = std::make_unique<client>(fd);
    if (clients.size() < most_clients) {
        clients.push_back(std::move(newcomer));
    } else {
        static const std::string full = "{\"error\":\"expected at most 16 connections at once: try again later\"}\n";
        (void) !send(fd, full.data(), full.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    return true;
}

void control_socket::serve() {
    std::vector<std::unique_ptr<client>> clients;
    std::vector<pollfd>                  waiting;
    bool                                 accepting = true;
    for (;;) {
        try {
            waiting = {{wake_[0], POLLIN, 0}, {accepting ? listener_ : -1, POLLIN, 0}};  // poll skips a negative one
            int timeout_ms = accepting ? -1 : retry_ms;
            for (const auto & c : clients) {
                waiting.push_back({c->fd(), c->events(), 0});
                timeout_ms = c->has_request() ? 0 : timeout_ms;
            }
            if (poll(waiting.data(), waiting.size(), timeout_ms) < 0) {
                continue;  // interrupted, or out of memory
            }
            if (waiting[0].revents) {
                return;
            }
            // one request each, so that nobody waits for the whole of another's queue
            for (size_t i = 0; i < clients.size(); i++) {
                const short events = waiting[i + 2].revents;
                if ((events || clients[i]->has_request()) && !clients[i]->advance(events & ~POLLOUT, target_)) {
                    clients[i].reset();
                }
            }
            clients.erase(std::remove(clients.begin(), clients.end(), nullptr), clients.end());
            accepting = waiting[1].revents == 0 || accept_one(listener_, clients);
        } catch (const std::exception &) {
            clients.clear();  // no memory: their buffers are what we can give back
        }
    }
}

}  // namespace hot
