#pragma once

#include "ei/ops/tensor.h"

namespace ei {

// Cosines and sines of a chunk's positions, made once and used by all layers:
//   angle = float(position) * inv_freq[j] in float, as Hugging Face does; cos and sin of it to 2
//   ulp, times `scale` (YaRN's attention factor, else 1).
struct RopeAngles {
  View<const int32_t, 1> positions;  // [n]
  View<const float, 1> inv_freq;     // [d / 2]
  float scale = 1;
  View<float, 2> cos;  // out: [n, d / 2]
  View<float, 2> sin;  // out: [n, d / 2]
};
void check(const RopeAngles& op);

// Rotates, in place, the pairs (j, j + d/2) of every head of every row ("half split" layout):
//   x[j] = x[j] cos - x[j + d/2] sin,   x[j + d/2] = x[j + d/2] cos + x[j] sin,
// or, interleaved, the pairs (2j, 2j + 1). GGUF stores q and k of Llama's kind for the latter.
struct Rope {
  Act x;                     // [n, n_heads * d]
  View<const float, 2> cos;  // [n, d / 2]
  View<const float, 2> sin;  // [n, d / 2]
  bool interleaved = false;
};
void check(const Rope& op);

}  // namespace ei
