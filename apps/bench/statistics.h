#pragma once

#include <cmath>
#include <span>

namespace ei::bench {

inline double mean(std::span<const double> x) {
  double sum = 0;
  for (const double v : x) sum += v;
  return x.empty() ? 0 : sum / double(x.size());
}

// Of a sample: over n - 1; 0 for a single value.
inline double deviation(std::span<const double> x) {
  if (x.size() < 2) return 0;
  const double m = mean(x);
  double sum = 0;
  for (const double v : x) sum += (v - m) * (v - m);
  return std::sqrt(sum / double(x.size() - 1));
}

}  // namespace ei::bench
