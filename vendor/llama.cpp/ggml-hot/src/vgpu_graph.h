// A graph's own copy of everything but the data, for a step that is done later.
//
// A backend has read the graph when graph_compute returns: whoever handed it over may change or free its tensors'
// descriptions then, and llama.cpp does. Only the data must stay until the backend has been waited for.
#pragma once

#include "ggml-impl.h"
#include "handles.h"

#include <vector>

namespace hot {

class vgpu_graph {
  public:
    explicit vgpu_graph(const ggml_cgraph * graph);
    vgpu_graph(const vgpu_graph &) = delete;
    vgpu_graph & operator=(const vgpu_graph &) = delete;

    ggml_cgraph * get() const { return copy_; }

  private:
    std::vector<ggml_tensor> tensors_;  // nodes, their sources, and what those are views of
    context_ptr              ctx_;      // holds the graph
    ggml_cgraph *            copy_ = nullptr;
};

}  // namespace hot
