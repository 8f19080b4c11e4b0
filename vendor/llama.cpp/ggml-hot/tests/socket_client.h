// A client of the control socket.
#pragma once

#include "check.h"

#include <nlohmann/json.hpp>

#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

inline int connect_to(const std::string & path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (const sockaddr *) &address, sizeof(address)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

inline nlohmann::json ask(const std::string & path, const nlohmann::json & request) {
    const int fd = connect_to(path);
    const std::string line = request.dump() + "\n";
    CHECK(fd >= 0 && send(fd, line.data(), line.size(), MSG_NOSIGNAL) == (ssize_t) line.size(), "no answer at %s", path.c_str());
    std::string answer;
    for (char c; fd >= 0 && read(fd, &c, 1) == 1 && c != '\n';) answer += c;
    if (fd >= 0) close(fd);
    return nlohmann::json::parse(answer, nullptr, false);
}
