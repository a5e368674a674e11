#pragma once

#include <cuda_runtime_api.h>

#include "ei/cuda/cache_rows.h"
#include "ei/ops/decode_attention.h"
#include "ei/ops/sparse_attention.h"

namespace ei::cuda {

// Attention for what the fast kernels do not take: f32 pages, other head sizes, blocks that are not
// groups of 8 keys. A thread block per query and head; meant for tests of parity, not for speed.
void attend_simply(const SparseAttention& op, cudaStream_t stream);
void attend_simply(const DecodeAttention& op, cudaStream_t stream);

}  // namespace ei::cuda
