#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace ei::eval {

// A number and its standard error.
struct Estimate {
  double value = 0, error = 0;
};

// How far one way of computing the same text is from another, token by token, in the terms of
// llama-perplexity.
struct Divergence {
  int64_t n_tokens = 0;
  Estimate ppl, ppl_base;  // exp of the mean negative log-probability of the text's tokens
  Estimate nll_change;     // of the mean negative log-probability
  Estimate
      ppl_ratio;  // its exp, the first over the second; the error knows that they move together
  Estimate kld;   // mean KL divergence of the base's distribution from this one, in nats
  std::vector<double> kld_percentiles;  // at kPercentiles
  Estimate rms_dp;    // root mean square change of the probability of the text's token
  Estimate same_top;  // share of tokens whose likeliest is the same
};
inline constexpr double kPercentiles[] = {0.5, 0.9, 0.95, 0.99, 1};

// A row of logits in two bytes each: how far below the highest, in steps of 2^-11 nats, down to 32
// nats, where a probability is 1e-14. Moves a KL divergence by less than 1e-7 on average.
using PackedLogits = std::vector<uint16_t>;
PackedLogits pack(std::span<const float> logits);
// A gigabyte of them is kept at most: of every so manieth of n places.
int64_t places_apart(int64_t n, int64_t vocab_size);

class DivergenceMeter {
 public:
  // One token of the text: logits of both for its place, over the same vocabulary.
  void add(std::span<const float> base, std::span<const float> other, int32_t token);
  // The same of a base that was kept; the other is rounded as it was, so that equals stay equal.
  void add(const PackedLogits& base, std::span<const float> other, int32_t token);
  // All that another has been given.
  void add(const DivergenceMeter& other);
  int64_t n_tokens() const { return static_cast<int64_t>(nll_.size()); }
  // Throws Error when there are fewer than two tokens.
  Divergence result() const;
  // Mean KL divergence minus that of another meter for the same tokens, with the error of the
  // difference. Throws Error when they are not as many.
  Estimate kld_minus(const DivergenceMeter& other) const;

 private:
  std::vector<double> nll_base_, nll_, kld_, dp_;
  std::vector<double> same_top_;
};

}  // namespace ei::eval
