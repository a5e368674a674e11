#include "apps/cli/suggest.h"

#include <algorithm>
#include <utility>

namespace ei::cli {
namespace {

// Keys to type one for the other: to add, leave out, replace or swap with the next.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before_last, last, row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    before_last = std::exchange(last, row);
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before_last[j - 2] + 1);
    }
  }
  return row.back();
}

}  // namespace

std::string nearest(std::string_view typed, const std::vector<std::string>& names) {
  const auto by_distance = [&](const std::string& a, const std::string& b) {
    return distance(typed, a) < distance(typed, b);
  };
  const auto best = std::min_element(names.begin(), names.end(), by_distance);
  const bool near = best != names.end() && distance(typed, *best) <= (typed.size() + 2) / 4;
  return near ? *best : "";
}

}  // namespace ei::cli
