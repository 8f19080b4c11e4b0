// A Unix socket that answers JSON lines, so that statistics can be read while the server runs. Nothing else listens.
#pragma once

#include <functional>
#include <string>
#include <thread>

namespace hot {

// One request line in, one answer line out. Requests: {"cmd":"stats"}. Anything else is answered by an error line.
std::string answer(const std::string & request, const std::function<std::string()> & stats_json);

class control_socket {
public:
    // Listens at `path` (mode 0600; a stale socket there is replaced). On failure it says so in the log and is idle.
    control_socket(const std::string & path, std::function<std::string()> stats_json);
    ~control_socket();
    control_socket(const control_socket &) = delete;
    control_socket & operator=(const control_socket &) = delete;

private:
    void serve();
    void serve_client(int client);
    bool wait_for(int client, short events) const;
    bool send_line(int client, std::string line) const;

    std::string path_;
    std::function<std::string()> stats_json_;
    int listener_ = -1;
    int wake_[2]  = {-1, -1};  // a pipe: closing our end of it ends the thread
    std::thread thread_;
};

}  // namespace hot
