#pragma once

#include <optional>
#include <vector>

#include "ei/engine/engine_impl.h"

namespace ei {

// The model's sketch: from the user's cache directory, or made of a text that the library has, and
// kept there. What is damaged there is made again, and what cannot be kept is not. Throws Error
// when memory is short or the model's keys are not finite.
Sketch make_sketch(const Engine::Impl& engine);

// n tokens that mean nothing, the same ones every time.
std::vector<int32_t> any_tokens(const ModelConfig& config, int64_t n);

}  // namespace ei
