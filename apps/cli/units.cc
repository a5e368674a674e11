#include "apps/cli/units.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

namespace ei::cli {

std::string grouped(int64_t n) {
  std::string digits = fmt::format("{}", n);
  const size_t first = n < 0 ? 1 : 0;
  for (size_t i = digits.size(); i > first + 3;) digits.insert(i -= 3, ",");
  return digits;
}

std::string human_bytes(int64_t n_bytes) {
  constexpr std::array kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  auto n = static_cast<double>(n_bytes);
  size_t unit = 0;
  for (; n >= 1023.95 && unit + 1 < kUnits.size(); ++unit) n /= 1024;
  return fmt::format("{:.{}f} {}", n, unit == 0 ? 0 : 1, kUnits[unit]);
}

std::string human_rate(double per_s) {
  return per_s < 99.95 ? fmt::format("{:.1f}", per_s)
                       : grouped(static_cast<int64_t>(std::llround(per_s)));
}

std::string human_ms(double ms) {
  if (ms < 999.95) return fmt::format("{:.1f} ms", ms);
  if (ms < 99.995e3) return fmt::format("{:.2f} s", ms / 1e3);
  return clock_time(ms / 1e3) + " min";
}

std::string clock_time(double s) {
  const int64_t t = std::llround(s);
  return t < 3600 ? fmt::format("{}:{:02}", t / 60, t % 60)
                  : fmt::format("{}:{:02}:{:02}", t / 3600, t / 60 % 60, t % 60);
}

}  // namespace ei::cli
