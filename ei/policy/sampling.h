#pragma once

#include <cstdint>

#include "ei/base/view.h"

namespace ei {

// How the next token is drawn. In this order, which is that of Hugging Face and vLLM: biases (those
// that ban the end of an answer among them), repetition, frequency and presence penalty,
// temperature, top_k, top_p (the fewest likeliest tokens whose probabilities reach it), min_p
// (tokens at least min_p times as likely as the likeliest), one draw from what is left.
struct SamplingParams {
  float temperature = 0;  // 0: greedy, the likeliest token; the filters do not matter then
  int32_t top_k = 0;      // 0 or -1: off
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;  // of tokens in the prompt or the answer, as Hugging Face counts
  float presence_penalty = 0;    // of tokens in the answer, as OpenAI defines it,
  float frequency_penalty = 0;   // and the same for each time that they are in it
  uint64_t seed = 0;

  bool has_penalties() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
};

// The logit of a token that is in the prompt or the answer, n_drawn times in the latter.
EI_HOST_DEVICE inline float penalized(float logit, const SamplingParams& p, int32_t n_drawn) {
  logit = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
  if (n_drawn == 0) return logit;
  return logit - (p.frequency_penalty * static_cast<float>(n_drawn) + p.presence_penalty);
}

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
