#include "apps/eval/divergence.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "ei/base/fail.h"

namespace ei::eval {
namespace {

Estimate mean(const std::vector<double>& values) {
  const auto n = double(values.size());
  const double m = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double square = 0;
  for (const double v : values) square += (v - m) * (v - m);
  return {m, std::sqrt(square / (n - 1) / n)};
}

// exp of an estimate, the error carried along.
Estimate exp(const Estimate& e) { return {std::exp(e.value), std::exp(e.value) * e.error}; }

double log_sum_exp(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(double(x) - top);
  return top + std::log(sum);
}

constexpr float kStep = 0x1p-11f;  // nats

std::vector<float> unpack(const PackedLogits& steps) {
  std::vector<float> logits;
  logits.reserve(steps.size());
  for (const uint16_t step : steps) logits.push_back(-kStep * static_cast<float>(step));
  return logits;
}

}  // namespace

PackedLogits pack(std::span<const float> logits) {
  const float top = logits.empty() ? 0 : *std::max_element(logits.begin(), logits.end());
  PackedLogits steps;
  steps.reserve(logits.size());
  for (const float logit : logits)
    steps.push_back(
        static_cast<uint16_t>(std::lround(std::min<float>((top - logit) / kStep, UINT16_MAX))));
  return steps;
}

int64_t places_apart(int64_t n, int64_t vocab_size) {
  const int64_t most =
      std::max<int64_t>(1, (int64_t{1} << 30) / (vocab_size * int64_t{sizeof(uint16_t)}));
  return (n + most - 1) / most;
}

void DivergenceMeter::add(const DivergenceMeter& other) {
  const auto append = [](std::vector<double>& to, const std::vector<double>& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  append(nll_base_, other.nll_base_);
  append(nll_, other.nll_);
  append(kld_, other.kld_);
  append(dp_, other.dp_);
  append(same_top_, other.same_top_);
}

void DivergenceMeter::add(const PackedLogits& base, std::span<const float> other, int32_t token) {
  add(unpack(base), unpack(pack(other)), token);
}

void DivergenceMeter::add(std::span<const float> base, std::span<const float> other,
                          int32_t token) {
  require(base.size() == other.size() && token >= 0 && static_cast<size_t>(token) < base.size(),
          "divergence: {} and {} logits, token {}", base.size(), other.size(), token);
  const double z_base = log_sum_exp(base), z = log_sum_exp(other);
  double kld = 0;
  for (size_t i = 0; i < base.size(); ++i) {
    const double log_p = double(base[i]) - z_base, log_q = double(other[i]) - z;
    kld += std::exp(log_p) * (log_p - log_q);
  }
  const auto t = static_cast<size_t>(token);
  const double log_p = double(base[t]) - z_base, log_q = double(other[t]) - z;
  nll_base_.push_back(-log_p);
  nll_.push_back(-log_q);
  kld_.push_back(std::max(0.0, kld));  // rounding alone makes it negative
  dp_.push_back(std::exp(log_q) - std::exp(log_p));
  const auto top = [](std::span<const float> x) {
    return std::max_element(x.begin(), x.end()) - x.begin();
  };
  same_top_.push_back(top(base) == top(other) ? 1 : 0);
}

Divergence DivergenceMeter::result() const {
  require(nll_.size() >= 2, "divergence: {} tokens, expected 2 or more", nll_.size());
  Divergence d;
  d.n_tokens = std::ssize(nll_);
  d.ppl_base = exp(mean(nll_base_));
  d.ppl = exp(mean(nll_));
  std::vector<double> change, square;
  for (size_t i = 0; i < nll_.size(); ++i) {
    change.push_back(nll_[i] - nll_base_[i]);
    square.push_back(dp_[i] * dp_[i]);
  }
  d.nll_change = mean(change);
  d.ppl_ratio = exp(d.nll_change);
  d.kld = mean(kld_);
  std::vector<double> sorted = kld_;
  std::sort(sorted.begin(), sorted.end());
  for (const double percentile : kPercentiles)
    d.kld_percentiles.push_back(
        sorted[static_cast<size_t>(percentile * double(sorted.size() - 1))]);
  const Estimate ms = mean(square);
  const double rms = std::sqrt(ms.value);
  d.rms_dp = {rms, rms > 0 ? ms.error / (2 * rms) : 0};
  d.same_top = mean(same_top_);
  return d;
}

Estimate DivergenceMeter::kld_minus(const DivergenceMeter& other) const {
  require(kld_.size() == other.kld_.size() && kld_.size() >= 2,
          "divergence: {} and {} tokens, expected as many, 2 or more", kld_.size(),
          other.kld_.size());
  std::vector<double> less(kld_.size());
  std::transform(kld_.begin(), kld_.end(), other.kld_.begin(), less.begin(), std::minus<>());
  return mean(less);
}

}  // namespace ei::eval
