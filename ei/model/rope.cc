#include "ei/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ei {
namespace {

constexpr double kTau = 2 * std::numbers::pi;

double llama3(const RopeConfig& rope, double f) {
  const double wavelength = kTau / f;
  const auto original = static_cast<double>(rope.original_positions);
  if (wavelength < original / rope.high_freq_factor) return f;
  if (wavelength > original / rope.low_freq_factor) return f / rope.factor;
  const double smooth = (original / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * f / rope.factor + smooth * f;
}

// The channels between which YaRN goes over from f to f / factor.
struct Ramp {
  double low, high;

  Ramp(const RopeConfig& rope, double d) {
    // The channel that turns `turns` times over the original context.
    const auto channel = [&](double turns) {
      return d * std::log(static_cast<double>(rope.original_positions) / (kTau * turns)) /
             (2 * std::log(rope.theta));
    };
    low = channel(rope.beta_fast);
    high = channel(rope.beta_slow);
    if (rope.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, d - 1);
    if (low == high) high += 0.001;
  }
  double at(double k) const { return std::clamp((k - low) / (high - low), 0.0, 1.0); }
};

double yarn_scale(const RopeConfig& rope) {
  if (rope.attention_factor) return *rope.attention_factor;
  const auto g = [&](double mscale) {
    return rope.factor <= 1 ? 1.0 : 0.1 * mscale * std::log(rope.factor) + 1;
  };
  if (rope.mscale != 0 && rope.mscale_all_dim != 0) return g(rope.mscale) / g(rope.mscale_all_dim);
  return g(1);
}

}  // namespace

RopeFrequencies rope_frequencies(const RopeConfig& rope, int64_t head_dim) {
  const auto d = static_cast<double>(head_dim);
  const Ramp ramp(rope, d);
  RopeFrequencies out;
  for (int64_t k = 0; k < head_dim / 2; ++k) {
    double f = std::pow(rope.theta, -2 * static_cast<double>(k) / d);
    switch (rope.type) {
      case RopeType::kDefault:
        break;
      case RopeType::kLinear:
        f /= rope.factor;
        break;
      case RopeType::kLlama3:
        f = llama3(rope, f);
        break;
      case RopeType::kYarn: {
        const double r = ramp.at(static_cast<double>(k));
        f = f / rope.factor * r + f * (1 - r);
        break;
      }
    }
    if (!rope.factors.empty()) f /= static_cast<double>(rope.factors[static_cast<size_t>(k)]);
    out.inv_freq.push_back(static_cast<float>(f));
  }
  if (rope.type == RopeType::kYarn) out.scale = static_cast<float>(yarn_scale(rope));
  return out;
}

}  // namespace ei
