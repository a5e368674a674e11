#pragma once

#include "ei/cuda/few_rows.h"
#include "ei/cuda/stream.h"

// Products with quantized weights: as they lie, in tiles, for few rows of x, else as bf16.
namespace ei::cuda {

inline constexpr int64_t kMaxPackedRows = 32;  // of x

// Outputs that a thread block makes of n rows.
int64_t packed_outputs(WeightFormat format, int64_t n);
// All parts are in this format, their columns in x's order; 1 <= n <= kMaxPackedRows.
void multiply_packed(const FewRows& product, WeightFormat format, Stream& stream);

// n rows of blocks in tiles, as Weight::in_tiles has them.
void pack(const void* blocks, WeightFormat format, int64_t n, int64_t cols, void* to,
          Stream& stream);
// to[i, :] = weight[tokens[i], :], or weight[i, :] where there are no tokens.
void unpack(const Weight& weight, const int32_t* tokens, int64_t n, void* to, Stream& stream);
// to[:, j] = x[:, order[j]].
void permute_columns(const Act& x, const int32_t* order, void* to, Stream& stream);

}  // namespace ei::cuda
