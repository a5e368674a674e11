#pragma once

#include <cstdint>

#include "ei/cuda/device/e4m3.cuh"
#include "ei/cuda/device/numbers.cuh"

// Rows of an fp8 cache (PageLayout): keys are whole numbers of 8 bits times a power of 2, values
// e4m3 times a power of 16.
namespace ei::cuda {

// The least power of 2, up to 64, such that no number of a key up to `top` is above 127 times that;
// of a value the least power of 16, up to 16, by 448.
template <bool kIsKey>
__device__ float cache_scale(float top) {
  // top = m 2^e against 127 = 1.98 2^6, or 448 = 1.75 2^8: the sum carries where m is above.
  constexpr int kExponent = kIsKey ? 6 : 8, kStep = kIsKey ? 1 : 4;
  constexpr uint32_t kCarry = kIsKey ? 0x1ffff : 0x1fffff;
  const int exponent = static_cast<int>((__float_as_uint(top) + kCarry) >> 23) - 127 - kExponent;
  const int of_step = (min(max(exponent, -100), 12 - kExponent) + 99 + kStep) / kStep * kStep - 100;
  return __uint_as_float(static_cast<uint32_t>(of_step + 127) << 23);
}

// Rounds a row of which each of `n_lanes` neighbouring lanes, a power of two, holds eight numbers,
// and returns its scale; x becomes what is stored. A row with a number that is none, or infinite,
// has no number for its scale.
template <bool kIsKey>
__device__ float round_to_cache(Numbers<8>& v, uint2& bytes, int n_lanes) {
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
  const float scale = cache_scale<kIsKey>(top);
  const float inverse = __uint_as_float(0x7f000000u - __float_as_uint(scale));
  const auto four = [&](int e) {
    const auto round = kIsKey ? four_s8 : four_e4m3;
    return round(v.x[e] * inverse, v.x[e + 1] * inverse, v.x[e + 2] * inverse,
                 v.x[e + 3] * inverse);
  };
  bytes = {four(0), four(4)};
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const uint32_t byte = (e < 4 ? bytes.x : bytes.y) >> e % 4 * 8;
    if constexpr (kIsKey) {
      v.x[e] = to_float(static_cast<int8_t>(byte)) * scale;
    } else {
      e4m3 stored;
      stored.__x = static_cast<uint8_t>(byte);
      v.x[e] = to_float(stored) * scale;
    }
  }
  return scale + damage;
}

// Four of one row of scale `scale`, as bf16, exactly.
__device__ inline uint2 widen_values(uint32_t four, float scale) {
  return e4m3_pairs(four, pack_bf16(scale * 0x1p120f, scale * 0x1p120f));
}
__device__ inline uint2 widen_keys(uint32_t four, float scale) {
  const uint32_t by = pack_bf16(scale, scale);
  const uint2 pairs = signed_pairs(four);
  return {multiply_pairs(pairs.x, by), multiply_pairs(pairs.y, by)};
}

}  // namespace ei::cuda
