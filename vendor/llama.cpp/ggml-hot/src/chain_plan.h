// A block's chain taken apart for computing it in one pass:
//
//   stage 0   x ── operand (x as the kernels of the next products want it) ── products: gate, up
//   stage 1   steps (biases, scales, activation) ── operand ─────────────── products: down
//   stage 2   steps (biases, scales): only where something stands behind the last products
//
// Within a stage the steps of a row need nothing but that row, and products need all of their operand's row.
#pragma once

#include "cpu_kernels.h"
#include "moe_block.h"

#include <vector>

namespace hot {

struct chain_plan {
    // A run of floats for each (token, expert) pair: an input, or what a node of the chain gives.
    struct value {
        const ggml_tensor * tensor;
        int        input  = -1;       // index in block.inputs; -1: a node
        int        home   = 0;        // the value whose memory it lies in: itself unless it is a view
        size_t     offset = 0;        // there, in floats
        int        stage  = 0;        // number of products behind one another that lead to it
        element_op step   = nullptr;  // what computes it; null for inputs, views and products

        int64_t width() const { return tensor->ne[0]; }
    };
    // A value in the form that products read it in.
    struct operand {
        int               value;
        ggml_type         type;
        ggml_from_float_t from_float;  // null: the floats as they are
    };
    struct product {
        int            value;
        int            operand;
        ggml_vec_dot_t dot;
        const ggml_tensor * weight() const { return node->src[0]; }
        const ggml_tensor * node;
    };
    struct stage {
        std::vector<int>     steps;     // values
        std::vector<int>     operands;
        std::vector<product> products;
        int64_t width      = 0;         // of the widest step or operand, in floats
        bool    by_columns = true;      // steps and operands can be computed for some columns without the others
    };

    std::vector<value>   values;        // the block's inputs, then its chain
    std::vector<operand> operands;
    std::vector<stage>   stages;

    // False when the chain has something that only the graph can do.
    bool make(const moe_block & block, const cpu_kernels & kernels);

    int value_of(const ggml_tensor * t) const;  // -1: none

private:
    bool add_view(value & v);
    bool add_product(value & v, const cpu_kernels & kernels);
    bool add_step(value & v, const moe_block & block, const cpu_kernels & kernels);
    int  operand_of(int value, ggml_type weight_type, const cpu_kernels & kernels);
    stage & stage_at(int index);
};

}  // namespace hot
