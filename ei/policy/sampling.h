#pragma once

#include <cstdint>

#include "ei/base/view.h"

namespace ei {

// How the next token is drawn. In this order, as Hugging Face does: repetition penalty (a logit of
// a token seen before is divided by it if positive, multiplied if negative), temperature, top_k,
// top_p (the fewest likeliest tokens whose probabilities reach it), min_p (tokens at least min_p
// times as likely as the likeliest), one draw from what is left.
struct SamplingParams {
  float temperature = 0;  // 0: greedy, the likeliest token; the filters below do not matter then
  int32_t top_k = 0;      // 0: off
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  uint64_t seed = 0;
};

// A uniform number in [0, 1), a pure function of its arguments (splitmix64), so that every backend
// draws the same.
EI_HOST_DEVICE inline float uniform(uint64_t seed, uint64_t step) {
  uint64_t z = seed + (step + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return static_cast<float>(z >> 40) * 0x1p-24f;
}

// Throws Error naming the first setting that is out of range.
void validate(const SamplingParams& params);

}  // namespace ei
