// How far two runs of a model are apart.
#pragma once

#include "llama.h"

#include <cstddef>
#include <vector>

// Squared error over squared size; 1 when they cannot be compared.
double nmse(const std::vector<float> & expected, const std::vector<float> & got);

// The divergence of `got`'s next-token distribution from `expected`'s at each position, in nats.
std::vector<double> kl_divergence(const std::vector<float> & expected, const std::vector<float> & got, size_t n_vocab);

double mean(const std::vector<double> & values);

// How many tokens at the start are equal.
size_t equal_start(const std::vector<llama_token> & a, const std::vector<llama_token> & b);
