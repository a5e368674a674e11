#pragma once

#include <string>

#include "ei/engine/engine_impl.h"

namespace ei {

// What a cache's pages depend on beside text and policy, as JSON: the model's shape, how the cache
// stores numbers, and a checksum of the keys and values that the model computes here of a few
// tokens: other weights, or a processor that rounds otherwise, compute others. Reads those tokens.
std::string cache_identity(const Engine::Impl& engine);

}  // namespace ei
