#include "apps/eval/divergence.h"

#include <algorithm>
#include <cmath>
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

}  // namespace

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
  d.ppl_ratio = exp(mean(change));
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

}  // namespace ei::eval
