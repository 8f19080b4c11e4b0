#include "chain_plan.h"

#include <algorithm>

namespace hot {

int chain_plan::value_of(const ggml_tensor * t) const {
    const auto found = std::find_if(values.begin(), values.end(), [&](const value & v) { return v.tensor == t; });
    return found == values.end() ? -1 : (int) (found - values.begin());
}

chain_plan::stage & chain_plan::stage_at(int index) {
    if ((int) stages.size() <= index) {
        stages.resize((size_t) index + 1);
    }
    return stages[(size_t) index];
}

bool chain_plan::make(const moe_block & block, const cpu_kernels & kernels) {
    values.clear();
    operands.clear();
    stages.clear();
    for (const ggml_tensor * input : block.inputs) {
        value v{input};
        v.input = v.home = (int) values.size();
        values.push_back(v);
    }
    for (const ggml_tensor * node : block.chain) {
        value v{node};
        v.home = (int) values.size();
        const bool known = is_view(node)                      ? add_view(v)
                           : node->op == GGML_OP_MUL_MAT_ID ? add_product(v, kernels)
                                                            : add_step(v, block, kernels);
        if (!known) {
            return false;
        }
        values.push_back(v);
    }
    return true;
}

bool chain_plan::add_view(value & v) {
    const int home = value_of(v.tensor->view_src);
    if (home < 0 || v.tensor->nb[0] != sizeof(float) || v.tensor->nb[1] != values[(size_t) home].tensor->nb[1]) {
        return false;
    }
    v.home   = home;
    v.offset = v.tensor->view_offs / sizeof(float);
    v.stage  = values[(size_t) home].stage;
    return values[(size_t) home].input < 0 && (int64_t) v.offset + v.width() <= values[(size_t) home].width();
}

bool chain_plan::add_product(value & v, const cpu_kernels & kernels) {
    const ggml_tensor *          weight = v.tensor->src[0];
    const ggml_type_traits_cpu * traits = kernels.traits(weight->type);
    const int                    from   = value_of(v.tensor->src[1]);
    if (!traits || !traits->vec_dot || from < 0) {
        return false;
    }
    const int read_as = operand_of(from, traits->vec_dot_type, kernels);
    if (read_as < 0) {
        return false;
    }
    v.stage = values[(size_t) from].stage + 1;
    stage_at(v.stage - 1).products.push_back({v.home, read_as, traits->vec_dot, v.tensor});
    return true;
}

int chain_plan::operand_of(int from, ggml_type type, const cpu_kernels & kernels) {
    const auto same = [&](const operand & o) { return o.value == from && o.type == type; };
    const auto found = std::find_if(operands.begin(), operands.end(), same);
    if (found != operands.end()) {
        return (int) (found - operands.begin());
    }
    const ggml_type_traits_cpu * traits = kernels.traits(type);
    const value &                v      = values[(size_t) from];
    if (type != GGML_TYPE_F32 && (!traits || !traits->from_float || v.width() % ggml_blck_size(type) != 0)) {
        return -1;
    }
    const int index = (int) operands.size();
    operands.push_back({from, type, type == GGML_TYPE_F32 ? nullptr : traits->from_float});
    if (operands.back().from_float) {
        stage & s = stage_at(v.stage);
        s.by_columns = s.by_columns && (s.width == 0 || s.width == v.width());
        s.width      = std::max(s.width, v.width());
        s.operands.push_back(index);
    }
    return index;
}

bool chain_plan::add_step(value & v, const moe_block & block, const cpu_kernels & kernels) {
    v.step = kernels.element_wise(v.tensor->op);
    v.stage = 1;  // at least: what is made of inputs alone has time until then
    bool by_columns = true;
    for (int s = 0; s < GGML_MAX_SRC && v.tensor->src[s]; s++) {
        const ggml_tensor * src = v.tensor->src[s];
        if (src == block.ids || s == expert_source(v.tensor)) {
            continue;
        }
        const int from = value_of(src);
        if (from < 0) {
            return false;
        }
        v.stage    = std::max(v.stage, values[(size_t) from].stage);
        by_columns = by_columns && (src->ne[0] == v.width() || src->ne[0] == 1);
    }
    if (!v.step) {
        return false;
    }
    stage & s = stage_at(v.stage);
    s.by_columns = s.by_columns && by_columns && (s.width == 0 || s.width == v.width());
    s.width      = std::max(s.width, v.width());
    s.steps.push_back(v.home);
    return true;
}

}  // namespace hot
