#include "ei/ops/append_kv.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "ei/base/fail.h"
#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {
namespace {

// Rounds d values to the cache's type.
void store_row(char* to, DType type, const float* from, int64_t d) {
  if (type != DType::kQ8) {
    for (int64_t c = 0; c < d; ++c) store(to, type, c, from[c]);
    return;
  }
  float largest = 0, damage = 0;  // NaN if any number is not finite, and then the row is
  for (int64_t c = 0; c < d; ++c) {
    largest = std::max(largest, std::abs(from[c]));
    damage += 0 * from[c];
  }
  const float scale = largest / 127 + damage, inverse = scale > 0x1p-120f ? 1 / scale : 0;
  std::memcpy(to, &scale, sizeof scale);
  // To the nearest by adding what leaves no room for a fraction.
  auto* numbers = reinterpret_cast<int8_t*>(to + PageLayout::numbers_at(type));
  for (int64_t c = 0; c < d; ++c)
    numbers[c] = static_cast<int8_t>(std::bit_cast<int32_t>(from[c] * inverse + 0x1.8p23f));
}

float widened(uint16_t bf16) { return from_bf16(bf16); }
float widened(float value) { return value; }
void narrow(float value, uint16_t& to) { to = to_bf16(value); }
void narrow(float value, float& to) { to = value; }

// Of a block that has this key and, unless it is the first, others before it.
template <class T>
void widen_bounds(char* lowest, char* highest, const char* key, int64_t d, bool first) {
  const auto* value = reinterpret_cast<const T*>(key);
  auto *low = reinterpret_cast<T*>(lowest), *high = reinterpret_cast<T*>(highest);
  if (first) {
    std::copy_n(value, d, low);
    std::copy_n(value, d, high);
    return;
  }
  for (int64_t c = 0; c < d; ++c) {
    narrow(std::min(widened(low[c]), widened(value[c])), low[c]);
    narrow(std::max(widened(high[c]), widened(value[c])), high[c]);
  }
}

// The bf16 next to a value, not above it.
uint16_t bf16_below(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits >> 16) + (value < 0 && (bits & 0xFFFF) != 0));
}
uint16_t bf16_above(float value) { return bf16_below(-value) ^ 0x8000; }

// widen_bounds for a key in kQ8.
void widen_outwards(char* lowest, char* highest, const char* key, int64_t d, bool first) {
  auto *low = reinterpret_cast<uint16_t*>(lowest), *high = reinterpret_cast<uint16_t*>(highest);
  for (int64_t c = 0; c < d; ++c) {
    const float value = load_number(key, DType::kQ8, c);
    if (first || value < from_bf16(low[c])) low[c] = bf16_below(value);
    if (first || value > from_bf16(high[c])) high[c] = bf16_above(value);
  }
}

}  // namespace

void CpuBackend::run(const AppendKv& op) {
  check(op);
  for (const KvLayer& kv : op.kv)
    require(kv.layout.dtype != DType::kFP8, "CPU: caches of fp8 are computed on GPUs alone");
  const View<float, 2> k = rows_of(op.k), v = rows_of(op.v);
  const int64_t share = op.k.rows / std::ssize(op.kv);
  for (size_t s = 0; s < op.kv.size(); ++s) {
    const KvLayer& kv = op.kv[s];
    const PageLayout& layout = kv.layout;
    const int64_t d = layout.head_dim, first = static_cast<int64_t>(s) * share;
    const int64_t copies = kv.n_kv_heads() / (op.k.cols / d);
    parallel_for(n_threads_, kv.n_kv_heads(), [&](int64_t h) {
      for (int64_t i = 0; i < share; ++i) {
        const int64_t row = kv.n_rows[h] + i, column = h / copies * d;
        char* key = key_at(kv, h, row);
        store_row(key, layout.dtype, k[first + i].data + column, d);
        store_row(value_at(kv, h, row), layout.dtype, v[first + i].data + column, d);
        if (layout.block == 0) continue;
        const int64_t block = row / layout.block;
        const auto widen = layout.dtype == DType::kBF16  ? widen_bounds<uint16_t>
                           : layout.dtype == DType::kF32 ? widen_bounds<float>
                                                         : widen_outwards;
        widen(lowest_at(kv, h, block), highest_at(kv, h, block), key, d, row % layout.block == 0);
      }
      kv.n_rows[h] += static_cast<int32_t>(share);
    });
  }
}

}  // namespace ei::cpu
