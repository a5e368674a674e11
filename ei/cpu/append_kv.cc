#include "ei/ops/append_kv.h"

#include <algorithm>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {
namespace {

// Rounds d values to the cache's type.
void store_row(char* to, DType type, const float* from, int64_t d) {
  for (int64_t c = 0; c < d; ++c) store(to, type, c, from[c]);
}

void widen_bounds(const KeyBounds& bounds, int64_t head, int64_t row, const char* key, DType type) {
  float* low = bounds.min[head][row / bounds.block].data;
  float* high = bounds.max[head][row / bounds.block].data;
  const bool first = row % bounds.block == 0;
  for (int64_t c = 0; c < bounds.min.dim(2); ++c) {
    const float value = load(key, type, c);
    low[c] = first ? value : std::min(low[c], value);
    high[c] = first ? value : std::max(high[c], value);
  }
}

}  // namespace

void CpuBackend::run(const AppendKv& op) {
  check(op);
  const View<float, 2> k = rows_of(op.k), v = rows_of(op.v);
  const int64_t share = op.k.rows / std::ssize(op.kv);
  for (size_t s = 0; s < op.kv.size(); ++s) {
    const KvLayer& kv = op.kv[s];
    const int64_t d = kv.head_dim, first = static_cast<int64_t>(s) * share;
    const int64_t copies = kv.n_kv_heads() / (op.k.cols / d);
    parallel_for(n_threads_, kv.n_kv_heads(), [&](int64_t h) {
      for (int64_t i = 0; i < share; ++i) {
        const int64_t row = kv.n_rows[h] + i, column = h / copies * d;
        char* key = key_at(kv, h, row);
        store_row(key, kv.dtype, k[first + i].data + column, d);
        store_row(value_at(kv, h, row), kv.dtype, v[first + i].data + column, d);
        if (op.bounds.block > 0) widen_bounds(op.bounds, h, row, key, kv.dtype);
      }
      kv.n_rows[h] += static_cast<int32_t>(share);
    });
  }
}

}  // namespace ei::cpu
