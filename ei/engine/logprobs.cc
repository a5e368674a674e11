#include "ei/engine/logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ei/base/half.h"

namespace ei {

LogitRows::LogitRows(Backend& backend, const Act& logits)
    : n_cols_(static_cast<size_t>(logits.cols)),
      logits_(static_cast<size_t>(logits.rows * logits.cols)) {
  const int64_t n_bytes = logits.rows * logits.cols * logits.elem_bytes;
  if (logits.elem_bytes == sizeof(float)) {
    backend.copy_out(logits_.data(), logits.data, n_bytes);
    return;
  }
  std::vector<uint16_t> narrow(logits_.size());
  backend.copy_out(narrow.data(), logits.data, n_bytes);
  std::transform(narrow.begin(), narrow.end(), logits_.begin(), from_bf16);
}

TokenReport LogitRows::report(int64_t row, int32_t chosen, int64_t n_top, int64_t n_tokens) const {
  const std::span<const float> logits = (*this)[row];
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - most);
  const float log_sum = most + static_cast<float>(std::log(sum));
  const auto at = [&](int32_t token) -> TokenLogprob {
    return {token, logits[static_cast<size_t>(token)] - log_sum};
  };

  TokenReport report{.chosen = at(chosen), .top = {}};
  std::vector<int32_t> order(
      static_cast<size_t>(std::min(n_tokens, static_cast<int64_t>(logits.size()))));
  std::iota(order.begin(), order.end(), 0);
  const auto end = order.begin() + std::min(n_top, static_cast<int64_t>(order.size()));
  std::partial_sort(order.begin(), end, order.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  for (auto it = order.begin(); it != end; ++it) report.top.push_back(at(*it));
  return report;
}

bool is_finite(Backend& backend, const Act& rows) {
  const LogitRows values(backend, rows);
  for (int64_t i = 0; i < rows.rows; ++i)
    if (!std::ranges::all_of(values[i], [](float x) { return std::isfinite(x); })) return false;
  return true;
}

}  // namespace ei
