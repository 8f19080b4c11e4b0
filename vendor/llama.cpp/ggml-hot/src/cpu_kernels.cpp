#include "cpu_kernels.h"

#include "ggml-cpu/ggml-cpu-impl.h"  // ggml_compute_params

#ifndef _WIN32
#include <dlfcn.h>
#endif

namespace hot {

// The CPU backend is a plug-in that was opened without showing its functions to others (RTLD_LOCAL). One of them is to be
// had through the registry; the dynamic linker knows the library that owns it, and that one's other functions by name.
#ifdef _WIN32
static void * library_of(void *) { return nullptr; }
static void   close_library(void *) {}
static void * function_of(void *, const char *) { return nullptr; }
#else
static void * library_of(void * function) {
    Dl_info info;
    return function && dladdr(function, &info) && info.dli_fname ? dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : nullptr;
}
static void   close_library(void * library) { dlclose(library); }
static void * function_of(void * library, const char * name) { return dlsym(library, name); }
#endif

cpu_kernels::cpu_kernels() {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    library_ = device ? library_of(ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads")) : nullptr;
    if (!library_) {
        return;
    }
    const auto find = [&](auto & function, const char * name) {
        function = reinterpret_cast<std::decay_t<decltype(function)>>(function_of(library_, name));
    };
    find(traits_, "ggml_get_type_traits_cpu");
    find(glu_, "ggml_compute_forward_glu");
    find(unary_, "ggml_compute_forward_unary");
    find(clamp_, "ggml_compute_forward_clamp");
    find(sqr_, "ggml_compute_forward_sqr");
    find(scale_, "ggml_compute_forward_scale");
    find(mul_, "ggml_compute_forward_mul");
    find(add_id_, "ggml_compute_forward_add_id");
}

cpu_kernels::~cpu_kernels() {
    if (library_) {
        close_library(library_);
    }
}

element_op cpu_kernels::element_wise(ggml_op op) const {
    switch (op) {
        case GGML_OP_GLU:    return glu_;
        case GGML_OP_UNARY:  return unary_;
        case GGML_OP_CLAMP:  return clamp_;
        case GGML_OP_SQR:    return sqr_;
        case GGML_OP_SCALE:  return scale_;
        case GGML_OP_MUL:    return mul_;
        case GGML_OP_ADD_ID: return add_id_;
        default:             return nullptr;
    }
}

void cpu_kernels::call(element_op op, ggml_tensor * node) {
    ggml_compute_params alone{};
    alone.ith = 0;
    alone.nth = 1;
    op(&alone, node);
}

}  // namespace hot
