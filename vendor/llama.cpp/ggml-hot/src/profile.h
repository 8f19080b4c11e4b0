// How often each expert of each layer was used: written at exit and on request, read at start. A llama-imatrix file
// serves as well, where its counts tell experts apart.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace hot {

// Uses of each expert, by the name of the layer's first expert weight, for example "blk.0.ffn_up_exps.weight".
using profile = std::map<std::string, std::vector<double>>;

// Reads a profile (JSON, as save_profile writes it) or an imatrix (GGUF, from its "<weight>.counts" tensors; a file
// is taken for GGUF when it starts with that magic). Returns "" or what is wrong; `out` is unchanged then. Uses are
// numbers from 0 to 1e15.
std::string load_profile(const std::string & path, profile & out);

// Writes {"version":1,"layers":{name:[uses..],..}} in one step, so that a reader never sees half of it. "" or an error.
// Overwrites no file that it cannot have written (one that does not begin with a brace), and writes no uses that
// load_profile would refuse.
std::string save_profile(const std::string & path, const profile & p);

// Whether a file is there and holds an imatrix: such a file is never overwritten.
bool is_imatrix(const std::string & path);

// The uses of a layer that goes by any of these weight names (an imatrix has gate, up and down, a profile one of them);
// null when the profile has none of them or has them for another number of experts.
const std::vector<double> * find_uses(const profile & p, const std::vector<std::string> & names, int n_expert);

}  // namespace hot
