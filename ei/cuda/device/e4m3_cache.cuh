#pragma once

#include <cstdint>

#include "ei/cuda/device/e4m3.cuh"
#include "ei/cuda/device/numbers.cuh"

// Numbers of a cache in e4m3: a row has a scale that is a power of 16 (PageLayout).
namespace ei::cuda {

// The least power of 16, up to 16, such that no number up to `top` is above 448 times that.
__device__ inline float cache_scale(float top) {
  // top = m 2^e against 448 = 1.75 2^8: the sum carries where m is above 1.75.
  const int exponent = static_cast<int>((__float_as_uint(top) + 0x1fffffu) >> 23) - 127 - 8;
  const int of_16 = (min(max(exponent, -100), 4) + 103) / 4 * 4 - 100;
  return __uint_as_float(static_cast<uint32_t>(of_16 + 127) << 23);
}

// Rounds a row of which each of `n_lanes` neighbouring lanes, a power of two, holds eight numbers,
// and returns its scale; x becomes what is stored. A row with a number that is none, or infinite,
// has no number for its scale.
__device__ inline float round_to_cache(Numbers<8>& v, uint2& bytes, int n_lanes) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned group = (n_lanes == 32 ? 0u : 1u << n_lanes) - 1;
  const unsigned mask = group << lane / static_cast<unsigned>(n_lanes) * n_lanes;
  float top = 0, damage = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    top = fmaxf(top, fabsf(v.x[e]));
    damage = fmaf(0.0f, v.x[e], damage);
  }
  for (int step = n_lanes / 2; step > 0; step /= 2) {
    top = fmaxf(top, __shfl_xor_sync(mask, top, step));
    damage += __shfl_xor_sync(mask, damage, step);
  }
  const float scale = cache_scale(top);
  const float inverse = __uint_as_float(0x7f000000u - __float_as_uint(scale));
  const auto four = [&](int e) {
    return four_e4m3(v.x[e] * inverse, v.x[e + 1] * inverse, v.x[e + 2] * inverse,
                     v.x[e + 3] * inverse);
  };
  bytes = {four(0), four(4)};
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    e4m3 stored;
    stored.__x = static_cast<uint8_t>((e < 4 ? bytes.x : bytes.y) >> e % 4 * 8);
    v.x[e] = to_float(stored) * scale;
  }
  return scale + damage;
}

// What widen() multiplies by: its numbers are 2^120 too small.
__device__ inline uint32_t widening_scale(float first, float second) {
  return pack_bf16(first * 0x1p120f, second * 0x1p120f);
}

// Two numbers, in the upper bytes of the halves, as bf16, exactly: exponent and mantissa move to
// where bf16 has them, and the product mends the exponent, of subnormal numbers too.
__device__ inline uint32_t widen(uint32_t two, uint32_t scale) {
  const uint32_t moved = (two & 0x80008000u) | (two >> 4 & 0x07f007f0u);
  __nv_bfloat162 x, by;
  memcpy(&x, &moved, 4);
  memcpy(&by, &scale, 4);
  x = __hmul2(x, by);
  uint32_t word;
  memcpy(&word, &x, 4);
  return word;
}

// Four of one row, or of two rows in turn.
__device__ inline uint2 widen_four(uint32_t four, uint32_t scale) {
  return {widen(__byte_perm(four, 0, 0x1404), scale), widen(__byte_perm(four, 0, 0x3424), scale)};
}

}  // namespace ei::cuda
