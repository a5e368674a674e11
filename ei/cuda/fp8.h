#pragma once

#include "ei/cuda/stream.h"
#include "ei/ops/tensor.h"

// Rows in e4m3, each with a scale: what is multiplied with Math::kFP8.
namespace ei::cuda {

// n rows of whole vectors of 16 numbers: x = scale[i] * to[i, :], the largest becoming 448. Numbers
// that are not finite stay so.
void quantize_rows(const void* bf16, int64_t n, int64_t cols, void* to, float* scale,
                   Stream& stream);
// The same of weights in blocks of FP8; rows whose scales are all one keep their numbers.
void merge_scales(const void* blocks, int64_t n, int64_t cols, void* to, float* scale,
                  Stream& stream);

}  // namespace ei::cuda
