// Tiny MoE models as files: what the matrix changes about one before it runs.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <string>
#include <vector>

// How the experts of a model are laid out, where llama.cpp's loader leaves the choice.
enum class expert_form {
    separate,       // gate and up in tensors of their own, no scale for each expert
    merged,         // one gate_up tensor
    scaled,         // separate, and a scale for each expert behind every product
    merged_scaled,  // merged, and a scale for each expert behind the last product
};

struct variant {
    ggml_type   type   = GGML_TYPE_F32;  // of the expert matrices
    expert_form form   = expert_form::separate;
    int         used   = 0;              // experts a token; 0 = as in the file
    int         groups = 0;              // expert groups, half of which a token may use; 0 = none
};

// One line for a reader, like "merged, 4 of 16 in 4 groups".
std::string describe(const variant & v);

// Rows of the expert matrices that are no multiple of the type's block, as "row of 192"; "" when all fit.
std::string does_not_fit(const std::string & base, ggml_type type);

// Whether the base model can take the form at all.
bool has_form(const std::string & base, expert_form form);

// Writes the variant of a base model (make-model's, all experts F32). Throws std::runtime_error.
void write_variant(const std::string & base, const std::string & path, const variant & v);
