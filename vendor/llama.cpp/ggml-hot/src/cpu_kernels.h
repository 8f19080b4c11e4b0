// ggml's own CPU kernels, called one row at a time: the same functions on the same numbers give the same bits as a graph
// that the CPU backend computes.
#pragma once

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <cstdint>

struct ggml_compute_params;

namespace hot {

// An operation that works element by element, as the backend's dispatcher calls it.
using element_op = void (*)(const ggml_compute_params *, ggml_tensor *);

class cpu_kernels {
public:
    // Asks the library behind the CPU backend. What is not found stays null, and its users do without.
    cpu_kernels();
    ~cpu_kernels();
    cpu_kernels(const cpu_kernels &) = delete;
    cpu_kernels & operator=(const cpu_kernels &) = delete;

    // How a product's weights of this type are multiplied; null when unknown.
    const ggml_type_traits_cpu * traits(ggml_type type) const { return traits_ ? traits_(type) : nullptr; }
    // The steps between products; null when `op` is none of them or is not reachable.
    element_op element_wise(ggml_op op) const;

    static void call(element_op op, ggml_tensor * node);

private:
    void *                                library_ = nullptr;
    decltype(&ggml_get_type_traits_cpu)   traits_  = nullptr;
    element_op glu_ = nullptr, unary_ = nullptr, clamp_ = nullptr, sqr_ = nullptr, scale_ = nullptr, mul_ = nullptr, add_id_ = nullptr;
};

}  // namespace hot
