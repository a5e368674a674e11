#pragma once

#include "ei/cuda/few_rows.h"
#include "ei/cuda/stream.h"
#include "ei/ops/tensor.h"

// Rows in e4m3, each with a scale: weights of Math::kFP8, and what many rows of x are rounded to
// for them. Few rows of x are multiplied as they are.
namespace ei::cuda {

// A thread block holds a row of whole vectors of 8 numbers in registers, 8 vectors a thread, of
// narrow rows half.
inline constexpr int kRoundHeld = 8;
inline constexpr int64_t kMaxRoundedCols = 1024 * 8 * kRoundHeld;
inline unsigned threads_that_round(int64_t cols) {
  const int64_t full = (cols + 256 * kRoundHeld - 1) / (256 * kRoundHeld);  // warps
  return static_cast<unsigned>(32 * (full <= 4 ? 2 * full : full <= 8 ? 8 : full));
}

// Behind the rows.
inline float* scales_of(const Act& rows) {
  return reinterpret_cast<float*>(static_cast<char*>(rows.data) + rows.rows * rows.cols);
}

// n rows of at most kMaxRoundedCols: x = scale[i] * to[i, :], the largest becoming 448. Numbers
// that are not finite stay so.
void quantize_rows(const void* bf16, int64_t n, int64_t cols, void* to, float* scale,
                   Stream& stream);
// The same of weights in blocks of FP8; rows whose scales are all one keep their numbers.
void merge_scales(const void* blocks, int64_t n, int64_t cols, void* to, float* scale,
                  Stream& stream);

// Few rows of x by weights in e4m3, all parts with a scale a row, or a block.
inline constexpr int64_t kMaxExactRows = 8;  // of x; by block kMaxPackedRows
int64_t e4m3_outputs(int64_t n);             // that a thread block makes of n rows
void multiply_e4m3(const FewRows& product, bool by_block, Stream& stream);

// n rows of blocks, as Weight::scale has them.
void split_blocks(const void* blocks, int64_t n, int64_t cols, void* to, float* scale,
                  Stream& stream);
// Rows with scales of blocks in bf16, as unpack() of quantized.h.
void unpack_e4m3(const Weight& weight, const int32_t* tokens, int64_t n, void* to, Stream& stream);

}  // namespace ei::cuda
