#pragma once

#include <span>

#include "ei/ops/kv.h"
#include "ei/ops/tensor.h"

namespace ei {

// Stores new keys and values behind those a layer holds, counts them in n_rows and, where pages
// hold key bounds, widens those of their blocks: a block's first key (row % block == 0) starts them
// afresh.
//
// The n rows go to the sequences in equal shares: all of them to one when prefilling, one to each
// of n when decoding. A cache of more heads than k (compacted per query head) stores each of k's as
// many times over. Values are rounded to the cache's type (to nearest, ties to even; in kQ8 to
// whole 127ths of the row's largest; in kFP8 keys to whole numbers of up to 127 and values to e4m3,
// up to 448, by the smallest scale that leaves none above; larger ones become these); bounds are of
// the rounded keys, exactly, or as PageLayout says.
struct AppendKv {
  Act k;  // [n, heads * d], RoPE applied; heads divides the n_kv_heads of every cache
  Act v;  // [n, heads * d]
  std::span<const KvLayer> kv;  // [n_sequences]; n is a multiple; pages for the new rows are there
};
void check(const AppendKv& op);

}  // namespace ei
