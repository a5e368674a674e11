#pragma once

#include <cuda_bf16.h>

#include <cstdint>

// bf16 and vectors of it.
namespace ei::cuda {

using bf16 = __nv_bfloat16;

// Eight numbers, one 16-byte access.
struct alignas(16) Bf16x8 {
  uint32_t word[4];

  __device__ float operator[](int i) const {
    const uint32_t w = word[i / 2];
    return __uint_as_float(i % 2 == 0 ? w << 16 : w & 0xffff0000u);
  }
};

__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  uint32_t word;
  memcpy(&word, &both, 4);
  return word;
}

__device__ inline Bf16x8 pack_bf16(const float (&x)[8]) {
  return {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
          pack_bf16(x[6], x[7])};
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }

template <class T>
__device__ T from_float(float x) {
  if constexpr (sizeof(T) == 2) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// A key whose unsigned order is the order of the floats.
__device__ inline uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);  // -0 is 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace ei::cuda
