// What the matrix tries: architectures x quantised types x layouts of the experts x places of the cache x settings.
#pragma once

#include "model-file.h"

#include <string>
#include <utility>
#include <vector>

// What computes the hot experts.
enum class cache_on { cpu, vgpu, two_vgpus, async_vgpu, gpu };

using environment = std::vector<std::pair<std::string, std::string>>;

struct row {
    std::string arch;
    variant     model;
    cache_on    cache     = cache_on::cpu;
    environment settings;       // of the device, beside those of all rows
    int         n_threads = 1;

    std::string name() const;   // its first columns in the table
};

// The short matrix has each architecture, type, layout, place and setting at least once; the full one is
// architectures x types, and each architecture with each place. On a real GPU (`gpu`) all rows have their cache there.
std::vector<row> matrix(const std::vector<std::string> & archs, bool full, bool gpu);
