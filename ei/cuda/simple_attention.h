#pragma once

#include "ei/cuda/cache_rows.h"
#include "ei/cuda/stream.h"
#include "ei/ops/decode_attention.h"
#include "ei/ops/sparse_attention.h"

namespace ei::cuda {

// Attention for what the fast kernels do not take: f32 pages, other head sizes, blocks that are not
// groups of 8 keys. A thread block per query and head; meant for tests of parity, not for speed.
void attend_simply(const SparseAttention& op, Stream& stream);
void attend_simply(const DecodeAttention& op, Stream& stream);

}  // namespace ei::cuda
