// The control socket: answers, error lines, permissions, clean end.
#include "../src/control.h"
#include "check.h"

#include <fcntl.h>
#include <string>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int connect_to(const std::string & path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(fd, (const sockaddr *) &address, sizeof(address)) == 0 ? fd : -1;
}

static std::string ask(int fd, const std::string & request) {
    CHECK(write(fd, request.data(), request.size()) == (ssize_t) request.size(), "write");
    std::string line;
    for (char c; read(fd, &c, 1) == 1 && c != '\n';) {
        line += c;
    }
    return line;
}

int main() {
    const auto stats = [] { return std::string("{\"hits\":7}"); };
    CHECK(hot::answer("{\"cmd\":\"stats\"}", stats) == "{\"hits\":7}", "stats");
    for (const char * bad : {"", "{", "[]", "null", "{\"cmd\":5}", "{\"cmd\":\"\xff\"}", "{\"cmd\":\"reboot\"}"}) {
        CHECK(hot::answer(bad, stats).find("\"error\"") != std::string::npos, "'%s' must get an error line", bad);
    }

    const std::string path = "/tmp/hot-control-test-" + std::to_string(getpid());
    {
        hot::control_socket control(path, stats);
        struct stat info {};
        CHECK(stat(path.c_str(), &info) == 0 && (info.st_mode & 0777) == 0600, "mode %o", info.st_mode & 0777);
        const int fd = connect_to(path);
        CHECK(fd >= 0, "connect");
        CHECK(ask(fd, "{\"cmd\":\"stats\"}\n") == "{\"hits\":7}", "over the socket");
        CHECK(ask(fd, "garbage\n").find("error") != std::string::npos, "garbage must not end the connection");
        CHECK(ask(fd, "{\"cmd\":\"stats\"}\n") == "{\"hits\":7}", "after garbage");
        close(fd);
        const int flood = connect_to(path);
        CHECK(ask(flood, std::string(70000, 'x')).find("64 KiB") != std::string::npos, "an endless line is refused");
        close(flood);
        const int idle = connect_to(path);  // an idle client must not keep the destructor waiting
        CHECK(idle >= 0, "connect");
        usleep(20000);
        close(idle);
        const int deaf = connect_to(path);  // nor one that asks and asks and never reads
        const std::string flood_of_requests = std::string("{\"cmd\":\"") + std::string(2000, 'x') + "\"}\n";
        for (int i = 0; i < 1000 && send(deaf, flood_of_requests.data(), flood_of_requests.size(), MSG_DONTWAIT) > 0; i++) {
        }
        usleep(50000);
    }
    const std::string file = path + ".txt";
    close(open(file.c_str(), O_CREAT | O_WRONLY, 0600));
    { hot::control_socket control(file, stats); }
    CHECK(access(file.c_str(), F_OK) == 0, "a file that is no socket must survive");
    unlink(file.c_str());
    CHECK(access(path.c_str(), F_OK) != 0, "the socket file must be gone");
    return verdict("control");
}
