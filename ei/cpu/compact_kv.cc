#include "ei/ops/compact_kv.h"

#include <cstring>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {

void CpuBackend::run(const CompactKv& op) {
  check(op);
  const int64_t n_heads = op.to.n_kv_heads(), copies = n_heads / op.from.n_kv_heads();
  const auto row_bytes = static_cast<size_t>(op.to.layout.row_bytes());
  parallel_for(n_threads_, n_heads, [&](int64_t h) {
    for (int64_t i = 0; i < op.keep.count[h]; ++i) {
      const int64_t row = op.keep.rows[h][i];
      std::memcpy(key_at(op.to, h, i), key_at(op.from, h / copies, row), row_bytes);
      std::memcpy(value_at(op.to, h, i), value_at(op.from, h / copies, row), row_bytes);
    }
    op.to.n_rows[h] = op.keep.count[h];
  });
}

}  // namespace ei::cpu
