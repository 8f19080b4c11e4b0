#include "processes.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <sstream>
#include <stdexcept>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

namespace {

// One line of text each way: verdict, columns and reason, with tabs between.
std::string packed(const outcome & out) {
    return std::string(1, "pfn"[out.verdict]) + "\t" + out.columns + "\t" + out.reason;
}

outcome unpacked(const std::string & text) {
    const size_t first = text.find('\t'), second = text.find('\t', first + 1);
    outcome out;
    out.verdict = text[0] == 'p' ? outcome::passed : text[0] == 'n' ? outcome::not_applicable : outcome::failed;
    out.columns = text.substr(first + 1, second - first - 1);
    out.reason  = text.substr(second + 1);
    return out;
}

std::string read_all(FILE * file) {
    std::string text;
    char buffer[4096];
    for (size_t n; (n = fread(buffer, 1, sizeof(buffer), file)) > 0;) {
        text.append(buffer, n);
    }
    return text;
}

std::string last_lines(const std::string & text, size_t n) {
    std::istringstream stream(text);
    std::vector<std::string> lines;
    for (std::string line; std::getline(stream, line);) {
        lines.push_back(line);
    }
    std::string last;
    for (size_t i = lines.size() - std::min(n, lines.size()); i < lines.size(); i++) {
        last += "\n    " + lines[i];
    }
    return last;
}

// Anonymous files, not pipes: a job that says much must not wait for a reader.
struct child {
    size_t job;
    FILE * answer;
    FILE * log;
};

[[noreturn]] void work(const child & c, const std::function<outcome(size_t)> & job) {
    dup2(fileno(c.log), STDOUT_FILENO);
    dup2(fileno(c.log), STDERR_FILENO);
    outcome out;
    try {
        out = job(c.job);
    } catch (const std::exception & error) {
        out.reason = error.what();
    }
    fputs(packed(out).c_str(), c.answer);
    const bool written = fflush(c.answer) == 0 && fflush(stdout) == 0;
    _exit(written ? 0 : 1);  // without destructors: the parent's objects are not ours
}

outcome finished(const child & c, int status) {
    rewind(c.answer);
    rewind(c.log);
    const std::string answer = read_all(c.answer), log = read_all(c.log);
    fclose(c.answer);
    fclose(c.log);
    outcome out;
    if (WIFSIGNALED(status)) {
        out.reason = std::string("died: ") + strsignal(WTERMSIG(status));
    } else if (WEXITSTATUS(status) != 0 || answer.empty()) {
        out.reason = "ended with exit code " + std::to_string(WEXITSTATUS(status));
    } else {
        out = unpacked(answer);
    }
    if (out.verdict == outcome::failed) {
        out.reason += last_lines(log, 12);
    }
    return out;
}

}  // namespace

void in_processes(size_t n_jobs, const std::function<outcome(size_t)> & job,
                  const std::function<void(size_t, const outcome &)> & report) {
    const size_t at_once = std::max(1u, std::thread::hardware_concurrency());
    std::map<pid_t, child> running;
    std::map<size_t, outcome> done;
    size_t n_reported = 0;
    for (size_t i = 0; i < n_jobs || !running.empty();) {
        if (i < n_jobs && running.size() < at_once) {
            const child c = {i, tmpfile(), tmpfile()};
            if (!c.answer || !c.log) {
                throw std::runtime_error("no temporary file");
            }
            fflush(stdout);  // or the child would print it again
            const pid_t pid = fork();
            if (pid < 0) {
                throw std::runtime_error("no process");
            }
            if (pid == 0) {
                work(c, job);
            }
            running.emplace(pid, c);
            i++;
            continue;
        }
        int status = 0;
        const auto it = running.find(wait(&status));
        if (it == running.end()) {
            continue;
        }
        done[it->second.job] = finished(it->second, status);
        running.erase(it);
        while (done.count(n_reported)) {
            report(n_reported, done[n_reported]);
            n_reported++;
        }
    }
}

int run_program(const std::vector<std::string> & argv, std::string & output) {
    FILE * printed = tmpfile();
    if (!printed) {
        throw std::runtime_error("no temporary file");
    }
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(fileno(printed), STDOUT_FILENO);
        dup2(fileno(printed), STDERR_FILENO);
        std::vector<char *> pointers;
        for (const std::string & argument : argv) {
            pointers.push_back(const_cast<char *>(argument.c_str()));
        }
        pointers.push_back(nullptr);
        execv(pointers[0], pointers.data());
        _exit(127);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    rewind(printed);
    output += read_all(printed);
    fclose(printed);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
