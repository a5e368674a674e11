#include "apps/eval/effort.h"

#include <algorithm>
#include <cmath>

#include "ei/base/fail.h"

namespace ei::eval {

Effort::Effort(const PrefillPolicy& policy) : policy_(policy) {
  require(!policy.is_dense(), "a dense policy has no setting that changes how much it reads");
  if (policy.estimate == ei::Estimate::kBounds) {
    name_ = "base_budget";
    low_ = std::log(double(policy.block));
    high_ = std::log(0x1p30);
    start_ = std::log(double(policy.budget.base));
  } else if (policy.share > 0) {
    name_ = "share";
    high_ = 20;
    start_ = -std::log(double(policy.share));
  } else {
    name_ = "mass";
    high_ = 12;
    start_ = std::min(-std::log1p(-double(policy.mass)), high_);
  }
}

double Effort::value(double at) const {
  return name_ == "base_budget" ? std::exp(at)
         : name_ == "share"     ? std::exp(-at)
                                : -std::expm1(-at);
}

PrefillPolicy Effort::policy(double at) const {
  PrefillPolicy policy = policy_;
  (name_ == "base_budget" ? policy.budget.base
   : name_ == "share"     ? policy.share
                          : policy.mass) = static_cast<float>(value(at));
  return policy;
}

size_t nearest(std::span<const Try> tries, double wanted) {
  const auto off = [&](const Try& t) { return std::abs(t.value - wanted); };
  return static_cast<size_t>(
      std::min_element(tries.begin(), tries.end(),
                       [&](const Try& a, const Try& b) { return off(a) < off(b); }) -
      tries.begin());
}

std::optional<double> next_try(std::span<const Try> tries, double wanted, const Effort& effort) {
  if (tries.empty()) return effort.start();
  const Try& best = tries[nearest(tries, wanted)];
  if (std::abs(best.value - wanted) <= kNear * wanted) return std::nullopt;
  const Try *below = nullptr, *above = nullptr;
  for (const Try& t : tries) {
    if (t.value < wanted && (!below || t.at > below->at)) below = &t;
    if (t.value >= wanted && (!above || t.at < above->at)) above = &t;
  }
  const auto tried = [&](double at) {
    return std::any_of(tries.begin(), tries.end(), [&](const Try& t) { return t.at == at; });
  };
  constexpr double kRise = 0.15;  // of a density over 1 of the scale, until two tries tell
  if (below == nullptr || above == nullptr) {
    const double at =
        std::clamp(best.at + (wanted - best.value) / kRise, effort.low(), effort.high());
    return tried(at) ? std::nullopt : std::optional(at);
  }
  const double room = above->at - below->at;
  if (room < 1e-4) return std::nullopt;  // a step, or noise
  const double share = (wanted - below->value) / (above->value - below->value);
  return below->at + std::clamp(share, 0.1, 0.9) * room;
}

}  // namespace ei::eval
