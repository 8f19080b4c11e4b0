#include "model-file.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

namespace {

struct model_file {
    gguf_context_ptr keys;
    ggml_context_ptr data;
    std::vector<const ggml_tensor *> tensors;
};

model_file read(const std::string & path) {
    model_file file;
    ggml_context * data = nullptr;
    file.keys.reset(gguf_init_from_file(path.c_str(), {/* no_alloc */ false, &data}));
    file.data.reset(data);
    if (!file.keys || !data) {
        throw std::runtime_error("cannot read " + path);
    }
    for (int64_t i = 0; i < gguf_get_n_tensors(file.keys.get()); i++) {
        file.tensors.push_back(ggml_get_tensor(data, gguf_get_tensor_name(file.keys.get(), i)));
    }
    return file;
}

bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool is_expert_matrix(const std::string & name) {
    return ends_with(name, "exps.weight") && name.find("_norm_") == std::string::npos;
}

bool is_merged(const std::string & name) {
    return ends_with(name, ".ffn_gate_up_exps.weight");
}

bool keeps_merged(expert_form form) {
    return form == expert_form::merged || form == expert_form::merged_scaled;
}

std::string replaced(std::string text, const std::string & what, const std::string & by) {
    return text.replace(text.find(what), what.size(), by);
}

// The experts' matrix in another type. Quantising takes most of a row's time, so only the first few experts are
// quantised, and the others have the same rows in another order: other experts all the same.
ggml_tensor * convert(ggml_context * ctx, const ggml_tensor * t, ggml_type type) {
    ggml_tensor * out = ggml_new_tensor_3d(ctx, type, t->ne[0], t->ne[1], t->ne[2]);
    ggml_set_name(out, t->name);
    const int64_t n_rows = t->ne[1], n_real = std::min<int64_t>(3, t->ne[2]);
    if (type == GGML_TYPE_F32) {
        memcpy(out->data, t->data, (size_t) n_real * t->nb[2]);
    } else {
        ggml_quantize_chunk(type, (const float *) t->data, out->data, 0, n_real * n_rows, t->ne[0], nullptr);
    }
    for (int64_t e = n_real; e < t->ne[2]; e++) {
        const char * from = (const char *) out->data + (size_t) (e % n_real) * out->nb[2];
        char * to = (char *) out->data + (size_t) e * out->nb[2];
        const size_t turned = (size_t) (e * n_rows / t->ne[2]) * out->nb[1];
        memcpy(to, from + turned, out->nb[2] - turned);
        memcpy(to + out->nb[2] - turned, from, turned);
    }
    return out;
}

// The gate's (0) or the up's (1) half of every expert's rows.
ggml_tensor * half_of(ggml_context * ctx, const ggml_tensor * merged, int which) {
    const int64_t n_ff = merged->ne[1] / 2;
    ggml_tensor * out  = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, merged->ne[0], n_ff, merged->ne[2]);
    ggml_set_name(out, replaced(merged->name, "gate_up", which == 0 ? "gate" : "up").c_str());
    for (int64_t e = 0; e < merged->ne[2]; e++) {
        memcpy((char *) out->data + (size_t) e * out->nb[2], (const char *) merged->data + (size_t) e * merged->nb[2] + (size_t) which * out->nb[2], out->nb[2]);
    }
    return out;
}

// Between 0.5 and 1.5, so that neglecting one is seen.
ggml_tensor * scales_for(ggml_context * ctx, const ggml_tensor * matrix) {
    ggml_tensor * out = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, matrix->ne[2]);
    ggml_set_name(out, replaced(matrix->name, ".weight", ".scale").c_str());
    for (int64_t e = 0; e < out->ne[0]; e++) {
        ((float *) out->data)[e] = 0.5f + (float) ((e * 7 + 3) % out->ne[0]) / (float) out->ne[0];
    }
    return out;
}

void set_for_arch(gguf_context * keys, const char * key, int value) {
    const std::string arch = gguf_get_val_str(keys, gguf_find_key(keys, "general.architecture"));
    gguf_set_val_u32(keys, (arch + "." + key).c_str(), (uint32_t) value);
}

}  // namespace

std::string describe(const variant & v) {
    std::string text;
    switch (v.form) {
        case expert_form::separate:      text = "separate";       break;
        case expert_form::merged:        text = "merged";         break;
        case expert_form::scaled:        text = "scaled";         break;
        case expert_form::merged_scaled: text = "merged, scaled"; break;
    }
    if (v.used > 0) {
        text += ", " + std::to_string(v.used) + " used";
    }
    if (v.groups > 0) {
        text += ", " + std::to_string(v.groups) + " groups";
    }
    return text;
}

std::string does_not_fit(const std::string & base, ggml_type type) {
    const model_file file = read(base);
    for (const ggml_tensor * t : file.tensors) {
        if (is_expert_matrix(t->name) && t->ne[0] % ggml_blck_size(type) != 0) {
            return "row of " + std::to_string(t->ne[0]);
        }
    }
    return "";
}

bool has_form(const std::string & base, expert_form form) {
    if (!keeps_merged(form)) {
        return true;
    }
    const model_file file = read(base);
    return std::any_of(file.tensors.begin(), file.tensors.end(), [](const ggml_tensor * t) { return is_merged(t->name); });
}

void write_variant(const std::string & base, const std::string & path, const variant & v) {
    const model_file file = read(base);
    gguf_context_ptr keys(gguf_init_empty());
    gguf_set_kv(keys.get(), file.keys.get());
    if (v.used > 0) {
        set_for_arch(keys.get(), "expert_used_count", v.used);
    }
    if (v.groups > 0) {
        set_for_arch(keys.get(), "expert_group_count", v.groups);
        set_for_arch(keys.get(), "expert_group_used_count", v.groups / 2);
    }

    // room for a split and a converted copy of everything, and for scales
    const size_t n = file.tensors.size();
    ggml_context_ptr made(ggml_init({ggml_used_mem(file.data.get()) * 2 + n * 8 * ggml_tensor_overhead(), nullptr, false}));
    const auto add = [&](const ggml_tensor * t) { gguf_add_tensor(keys.get(), t); };
    const auto add_experts = [&](const ggml_tensor * t) {
        add(convert(made.get(), t, v.type));
        if (v.form == expert_form::scaled || (v.form == expert_form::merged_scaled && !is_merged(t->name))) {
            add(scales_for(made.get(), t));
        }
    };
    for (const ggml_tensor * t : file.tensors) {
        if (is_merged(t->name) && !keeps_merged(v.form)) {
            add_experts(half_of(made.get(), t, 0));
            add_experts(half_of(made.get(), t, 1));
        } else if (is_expert_matrix(t->name)) {
            add_experts(t);
        } else {
            add(t);
        }
    }
    if (!gguf_write_to_file(keys.get(), path.c_str(), /* only_meta */ false)) {
        throw std::runtime_error("cannot write " + path);
    }
}
