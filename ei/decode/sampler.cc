#include "ei/decode/sampler.h"

#include <cmath>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"

namespace ei {

SamplerState::SamplerState(Backend& backend, const SamplingParams& params,
                           std::span<const int32_t> prompt, int64_t max_new, const Options& options)
    : params_(params), min_tokens_(options.min_tokens) {
  validate(params);
  std::vector<LogitBias> biases;
  if (min_tokens_ > 0)
    for (const int32_t token : options.ends) biases.push_back({token, -INFINITY});
  n_bans_ = std::ssize(biases);
  biases.insert(biases.end(), options.biases.begin(), options.biases.end());
  biases_ = {backend, biases};
  if (!params.has_penalties()) return;
  // Only one penalty counts the prompt.
  if (params.repetition_penalty != 1) n_prompt_ = std::ssize(prompt);
  history_ = {backend, {n_prompt_ + max_new}};
  if (n_prompt_ > 0)
    backend.copy_in(history_.view().data, prompt.data(), n_prompt_ * int64_t{sizeof(int32_t)});
}

void SamplerState::allow(Backend& backend, std::span<const uint32_t> tokens) {
  if (allowed_.view().size() != std::ssize(tokens)) allowed_ = {backend, {std::ssize(tokens)}};
  backend.copy_in(allowed_.view().data, tokens.data(), static_cast<int64_t>(tokens.size_bytes()));
}

Sample::Row SamplerState::row(int64_t logits_row) const {
  const int64_t n_lifted = n_drawn_ < min_tokens_ ? 0 : n_bans_;
  const View<const LogitBias, 1> biases = biases_.view();
  return {.params = params_,
          .logits_row = logits_row,
          .step = n_drawn_,
          .biases = biases.slice(n_lifted, biases.size() - n_lifted),
          .allowed = allowed_.view(),
          .history = history_.view(),
          .n_prompt = n_prompt_};
}

Sampler::Sampler(Backend& backend, int64_t n_tokens, int64_t max_rows)
    : backend_(backend),
      n_tokens_(n_tokens),
      drawn_(static_cast<size_t>(max_rows)),
      tokens_(backend, {max_rows}) {
  rows_.reserve(drawn_.size());
}

std::span<const int32_t> Sampler::draw(const Act& logits, std::span<const Row> rows) {
  const auto n = std::ssize(rows);
  require(n <= std::ssize(drawn_), "Sampler: {} rows, expected at most {}", n, drawn_.size());
  if (n == 0) return {};
  rows_.clear();
  for (const Row& row : rows) rows_.push_back(row.state->row(row.logits_row));
  const View<int32_t, 1> tokens = tokens_.view().slice(0, n);
  const std::span<int32_t> drawn(drawn_.data(), rows.size());
  if (backend_.ranks().rank() == 0) {
    backend_.run(Sample{.logits = logits, .rows = rows_, .n_tokens = n_tokens_, .token = tokens});
    backend_.copy_out(drawn.data(), tokens.data, static_cast<int64_t>(drawn.size_bytes()));
  }
  backend_.ranks().broadcast(std::as_writable_bytes(drawn));
  for (size_t i = 0; i < rows.size(); ++i)
    if (drawn[i] >= 0) ++rows[i].state->n_drawn_;
  return drawn;
}

void check_drawn(int32_t token) {
  require(token != Sample::kNotFinite,
          "the model's logits are NaN or infinite, no token can be drawn: a weight or the input is "
          "beyond its number type");
  if (token == Sample::kNoneLeft)
    throw NothingLeft(
        "logit_bias, min_tokens and the answer's form ban every token; leave one that can be "
        "drawn");
}

}  // namespace ei
