#include "vgpu_graph.h"

#include <unordered_map>

namespace hot {

// Where the copy of each tensor goes: those of the nodes come first.
using places = std::unordered_map<const ggml_tensor *, size_t>;

static void add_place(places & place_of, const ggml_tensor * t) {
    for (; t; t = t->view_src) {
        place_of.emplace(t, place_of.size());
    }
}

vgpu_graph::vgpu_graph(const ggml_cgraph * graph) {
    places place_of;
    for (int i = 0; i < graph->n_nodes; i++) {
        place_of.emplace(graph->nodes[i], place_of.size());
    }
    const size_t n_nodes = place_of.size();
    for (int i = 0; i < graph->n_nodes; i++) {
        add_place(place_of, graph->nodes[i]->view_src);
        for (const ggml_tensor * source : graph->nodes[i]->src) {
            add_place(place_of, source);
        }
    }

    tensors_.resize(place_of.size());
    const auto copy_of = [&](const ggml_tensor * t) { return t ? &tensors_[place_of.at(t)] : nullptr; };
    for (const auto & [original, place] : place_of) {
        ggml_tensor & copy = tensors_[place];
        copy          = *original;
        copy.view_src = copy_of(original->view_src);
        // The CPU's kernels ask a buffer only whether it holds repacked weights, which a virtual GPU's never does; and
        // the buffer's description, too, may be gone by then.
        copy.buffer   = nullptr;
        for (ggml_tensor *& source : copy.src) {
            source = place < n_nodes ? copy_of(source) : nullptr;  // no kernel looks at its sources' sources
        }
    }

    const size_t size = (size_t) graph->n_nodes;
    ctx_.reset(ggml_init({ggml_graph_overhead_custom(size, false), nullptr, true}));
    copy_ = ggml_new_graph_custom(ctx_.get(), size, false);
    copy_->order = graph->order;
    for (int i = 0; i < graph->n_nodes; i++) {
        ggml_tensor * node = copy_of(graph->nodes[i]);
        ggml_graph_add_node(copy_, node);
        // the CPU fuses a node with the next by the number of its uses, and must do here what it does with the original
        const size_t slot = ggml_hash_find_or_insert(&copy_->visited_hash_set, node);
        copy_->use_counts[slot] = graph->visited_hash_set.size > 0 ? ggml_node_get_use_count(graph, i) : 0;
    }
}

}  // namespace hot
