#pragma once

#include "ei/cuda/device/numbers.cuh"
#include "ei/ops/matmul.h"

namespace ei::cuda {

// The parts of a product by few rows of x, started as one: bound by reading the weights once.
struct FewRows {
  struct Part {
    const void* weight;
    const float* scale;  // of each output, or null
    const float* bias;
    void* out;
    int m;
    bool accumulate;
    bool out_is_float;

    // Number `at` of the output, or what is to be added to it.
    __device__ void store(int64_t at, float y) const {
      if (out_is_float) {
        float* to = static_cast<float*>(out);
        to[at] = accumulate ? to[at] + y : y;
      } else {
        bf16* to = static_cast<bf16*>(out);
        to[at] = __float2bfloat16_rn(accumulate ? to_float(to[at]) + y : y);
      }
    }
  };
  Part parts[3];
  int first_block[4];  // of each part; parts end where the next begins
  const bf16* x;
  int n, k;
  int n_parts = 0;

  explicit FewRows(const Act& x)
      : parts{},
        first_block{},
        x(static_cast<const bf16*>(x.data)),
        n(static_cast<int>(x.rows)),
        k(static_cast<int>(x.cols)) {}

  // The part that a thread block makes outputs of.
  __device__ int part_of(int block) const {
    int which = 0;
    while (which < 2 && block >= first_block[which + 1]) ++which;
    return which;
  }
  // With so many outputs a block.
  void add(const MatMul::Part& part, int64_t per_block) {
    const int64_t m = part.weight.rows;
    parts[n_parts++] = {part.weight.data,        part.weight.scale,   part.bias.data,
                        part.out.data,           static_cast<int>(m), part.accumulate,
                        part.out.elem_bytes == 4};
    for (int i = n_parts; i < 4; ++i)
      first_block[i] = first_block[n_parts - 1] + static_cast<int>((m + per_block - 1) / per_block);
  }
  unsigned n_blocks() const { return static_cast<unsigned>(first_block[3]); }
};

}  // namespace ei::cuda
