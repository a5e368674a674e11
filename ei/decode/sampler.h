#pragma once

#include <span>
#include <vector>

#include "ei/base/error.h"
#include "ei/ops/backend.h"
#include "ei/ops/buffer.h"
#include "ei/policy/sampling.h"

namespace ei {

// What drawing the tokens of one answer goes by: its settings, how many were drawn and, if
// penalties count them, which.
class SamplerState {
 public:
  struct Options {
    std::vector<LogitBias> biases;
    std::vector<int32_t> ends;  // banned until min_tokens are drawn
    int64_t min_tokens = 0;
  };
  // max_new: the most tokens that will be drawn. Throws Error when a setting is out of range.
  SamplerState(Backend& backend, const SamplingParams& params, std::span<const int32_t> prompt,
               int64_t max_new, const Options& options);

  int64_t n_drawn() const { return n_drawn_; }
  // Nothing else is drawn from now on: bit i % 32 of word i / 32 allows token i, for all there are.
  void allow(Backend& backend, std::span<const uint32_t> tokens);

 private:
  friend class Sampler;
  Sample::Row row(int64_t logits_row) const;

  SamplingParams params_;
  int64_t n_prompt_ = 0, n_drawn_ = 0;
  int64_t n_bans_ = 0, min_tokens_ = 0;
  DeviceArray<LogitBias, 1> biases_;  // the bans first
  DeviceArray<uint32_t, 1> allowed_;  // empty: all
  DeviceArray<int32_t, 1> history_;   // the prompt and what was drawn; empty without penalties
};

// Draws the next tokens of many answers at once: one op and one copy from the device, of a number
// for each. Nothing is allocated. Of ranks that share the model the first draws for all.
class Sampler {
 public:
  // n_tokens: ids the tokenizer knows. At most max_rows are drawn at a time.
  Sampler(Backend& backend, int64_t n_tokens, int64_t max_rows);

  struct Row {
    SamplerState* state = nullptr;
    int64_t logits_row = 0;  // several answers that begin with the same prompt may share one
  };
  // A token for each row, from logits [n_logits, vocab_size], which stay as they are. Waits for the
  // device. In place of a token stands what check_drawn() throws for; such a row's state, and that
  // of every row when draw() throws, is as it was. The result is valid until the next call.
  std::span<const int32_t> draw(const Act& logits, std::span<const Row> rows);

 private:
  Backend& backend_;
  int64_t n_tokens_;
  std::vector<Sample::Row> rows_;
  std::vector<int32_t> drawn_;
  DeviceArray<int32_t, 1> tokens_;
};

// What is asked of an answer leaves no token that could be written.
class NothingLeft : public Error {
 public:
  using Error::Error;
};

// Throws Error when what was drawn is no token, a matter of that one answer: NothingLeft if it is
// for what was asked.
void check_drawn(int32_t token);

}  // namespace ei
