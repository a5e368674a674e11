#pragma once

#include <span>

#include "ei/ops/backend.h"
#include "ei/ops/buffer.h"
#include "ei/policy/sampling.h"

namespace ei {

// Draws the tokens of one answer.
class Sampler {
 public:
  // n_tokens: ids the tokenizer knows; max_new: the most that will be drawn. The repetition penalty
  // counts the prompt's tokens too, as Hugging Face does.
  Sampler(Backend& backend, const SamplingParams& params, int64_t n_tokens,
          std::span<const int32_t> prompt, int64_t max_new);

  // The next token from logits [1, vocab_size], which it may change. Waits for the device.
  int32_t next(const Act& logits);

 private:
  Backend& backend_;
  SamplingParams params_;
  int64_t n_tokens_;
  uint64_t step_ = 0;
  int64_t n_history_ = 0;
  DeviceArray<int32_t, 1> history_;  // empty without a repetition penalty
  DeviceArray<int32_t, 1> token_;
};

}  // namespace ei
