#include "apps/cli/limits.h"

#include <fmt/format.h>

#include <charconv>

namespace ei::cli {
namespace {

// Limits that nobody comes near are there to stop nonsense, and would only confuse.
template <class T>
std::string expected(const char* what, T min, T max, const std::string& found) {
  constexpr T kNear = 1 << 20;
  const std::string limits = max <= kNear    ? fmt::format("{} from {} to {}", what, min, max)
                             : min >= -kNear ? fmt::format("{}, {} or more", what, min)
                                             : std::string(what);
  return fmt::format("expected {}, found {}", limits, found);
}

}  // namespace

std::optional<int64_t> parse_count(std::string_view text) {
  int64_t n = 0, unit = 1;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, n);
  const std::string_view suffix(stop, static_cast<size_t>(end - stop));
  if (suffix == "k" || suffix == "K") unit = 1 << 10;
  if (suffix == "m" || suffix == "M") unit = 1 << 20;
  if (error != std::errc() || (unit == 1 && !suffix.empty())) return std::nullopt;
  if (__builtin_mul_overflow(n, unit, &n)) return std::nullopt;
  return n;
}

CLI::Validator count(int64_t min, int64_t max) {
  return {[=](std::string& text) {
            const std::optional<int64_t> n = parse_count(text);
            if (!n || *n < min || *n > max) return expected("a whole number", min, max, text);
            text = std::to_string(*n);
            return std::string();
          },
          ""};
}

CLI::Validator between(double min, double max) {
  return {[=](std::string& text) {
            double x = 0;
            const bool is_number = CLI::detail::lexical_cast(text, x);
            return is_number && x >= min && x <= max ? std::string()
                                                     : expected("a number", min, max, text);
          },
          ""};
}

}  // namespace ei::cli
