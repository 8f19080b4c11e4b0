// Jobs in processes of their own: each may set its environment, load libraries once, and crash without harm to the rest.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

struct outcome {
    enum { passed, failed, not_applicable } verdict = failed;
    std::string columns;  // numbers for a table
    std::string reason;   // why it failed or does not apply
};

// Runs `job` for 0 .. n_jobs-1, as many at once as there are cores, and reports each on the calling thread, in order.
// What a failed job printed (its last lines) goes with the reason; a crash or an exception is a failure.
void in_processes(size_t n_jobs, const std::function<outcome(size_t)> & job,
                  const std::function<void(size_t, const outcome &)> & report);

// Runs a program and returns its exit status; what it prints is appended to `output`.
int run_program(const std::vector<std::string> & argv, std::string & output);
