#pragma once

#include <optional>
#include <span>
#include <string>

#include "ei/policy/prefill_policy.h"

namespace ei::eval {

// The one setting of a prefill policy that says how much of the past it reads, on a scale of its
// own along which density grows and is nearly a straight line.
class Effort {
 public:
  // Throws Error for a policy that has none: dense.
  explicit Effort(const PrefillPolicy& policy);

  const std::string& setting() const { return name_; }  // by the name of its flag
  double low() const { return low_; }
  double high() const { return high_; }
  double start() const { return start_; }  // where the policy stands
  double value(double at) const;           // of the setting
  PrefillPolicy policy(double at) const;   // with that value

 private:
  PrefillPolicy policy_;
  std::string name_;
  double low_ = 0, high_ = 0, start_ = 0;
};

// What was measured of a policy at a place of that scale.
struct Try {
  double at = 0, value = 0;
};

// How near a value must come to what is wanted, as a share of it.
inline constexpr double kNear = 0.02;

// Where to look next for a place with the value `wanted`; values grow with places, but for noise.
// Nothing once one is near, or there is no room left between those that are too low and too high.
std::optional<double> next_try(std::span<const Try> tries, double wanted, const Effort& effort);

// The one that comes nearest; there is one at least.
size_t nearest(std::span<const Try> tries, double wanted);

}  // namespace ei::eval
