#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ei {

struct ModelConfig;

// Shapes of well-known checkpoints, for measurements on random weights.
std::vector<std::string> shape_names();

// Throws Error when there is no such shape, naming those there are.
ModelConfig named_shape(std::string_view name);

}  // namespace ei
