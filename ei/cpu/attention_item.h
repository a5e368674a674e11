#pragma once

#include <algorithm>
#include <cstdint>

#include "ei/cpu/numbers.h"
#include "ei/ops/sparse_attention.h"

namespace ei::cpu {

// Some queries of one segment and all query heads of one KV head: the rows of one product, so that
// a key is fetched and widened once for all of them.
struct AttentionItem {
  int64_t kv_head = 0;
  int64_t first = 0;  // row of q
  int64_t n_tokens = 0;
  int64_t segment_begin = 0;        // position
  int64_t n_past = 0;               // keys before the segment
  const int32_t* blocks = nullptr;  // those they are in; nullptr: the first n_past
};

constexpr int64_t padded(int64_t d) { return (d + 15) / 16 * 16; }

// Where keys [begin, begin + n) of the item's sequence are stored.
inline void find_keys(const SparseAttention& op, const AttentionItem& item, int64_t begin,
                      int64_t n, const char** keys) {
  const KvLayer& kv = op.kv;
  const int64_t row_bytes = kv.layout.row_bytes();
  for (int64_t j = 0; j < n;) {
    const int64_t at = begin + j;
    int64_t row = at, run = item.n_past - at;  // that many follow each other
    if (run <= 0) {
      row = at - item.n_past + item.segment_begin;
      run = n;
    } else if (item.blocks != nullptr) {
      row = item.blocks[at / op.block] * op.block + at % op.block;
      run = op.block - at % op.block;
    }
    run = std::min({run, n - j, kv.layout.rows - row % kv.layout.rows});
    const char* key = key_at(kv, item.kv_head, row);
    for (int64_t i = 0; i < run; ++i) keys[j++] = key + i * row_bytes;
  }
}

}  // namespace ei::cpu
