#include "ei/engine/logprobs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <span>

namespace ei {
namespace {

float widen(uint16_t bf16) { return std::bit_cast<float>(uint32_t{bf16} << 16); }

// Round to nearest even. An infinity stays one; there are no NaNs among logits.
uint16_t narrow(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isinf(value)) return static_cast<uint16_t>(bits >> 16);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// The elements [begin, begin + out.size()) of a row of activations: floats or bf16.
void read(Backend& backend, const Act& row, int64_t begin, std::span<float> out) {
  const char* data = static_cast<const char*>(row.data) + begin * row.elem_bytes;
  const auto n_bytes = static_cast<int64_t>(out.size()) * row.elem_bytes;
  if (row.elem_bytes == sizeof(float)) return backend.copy_out(out.data(), data, n_bytes);
  std::vector<uint16_t> narrow_values(out.size());
  backend.copy_out(narrow_values.data(), data, n_bytes);
  std::transform(narrow_values.begin(), narrow_values.end(), out.begin(), widen);
}

}  // namespace

LogitRow::LogitRow(Backend& backend, const Act& logits, int64_t row)
    : logits_(static_cast<size_t>(logits.cols)) {
  read(backend, logits.slice(row, 1), 0, logits_);
  const float most = *std::max_element(logits_.begin(), logits_.end());
  double sum = 0;
  for (const float x : logits_) sum += std::exp(x - most);
  log_sum_ = most + static_cast<float>(std::log(sum));
}

TokenReport LogitRow::report(int32_t chosen, int64_t n_top, int64_t n_tokens) const {
  TokenReport report{.chosen = at(chosen), .top = {}};
  std::vector<int32_t> order(
      static_cast<size_t>(std::min(n_tokens, static_cast<int64_t>(logits_.size()))));
  std::iota(order.begin(), order.end(), 0);
  const auto end = order.begin() + std::min(n_top, static_cast<int64_t>(order.size()));
  std::partial_sort(order.begin(), end, order.end(), [&](int32_t a, int32_t b) {
    const float x = logits_[static_cast<size_t>(a)], y = logits_[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  for (auto it = order.begin(); it != end; ++it) report.top.push_back(at(*it));
  return report;
}

void bias_logit(Backend& backend, const Act& logits, int32_t token, float bias) {
  float value = 0;
  read(backend, logits, token, {&value, 1});
  value += bias;
  char* to = static_cast<char*>(logits.data) + token * logits.elem_bytes;
  if (logits.elem_bytes == sizeof(float)) return backend.copy_in(to, &value, sizeof(value));
  const uint16_t bf16 = narrow(value);
  backend.copy_in(to, &bf16, sizeof(bf16));
}

}  // namespace ei
