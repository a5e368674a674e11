#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

// bf16, vectors of it, and e4m3.
namespace ei::cuda {

using bf16 = __nv_bfloat16;
using e4m3 = __nv_fp8_e4m3;

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
__device__ inline float to_float(e4m3 x) { return static_cast<float>(x); }
__device__ inline float to_float(int8_t x) { return static_cast<float>(x); }

template <class T>
__device__ T from_float(float x) {
  if constexpr (sizeof(T) == 2) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// kWidth neighbours, as floats: 8 in 16-byte accesses, or 1.
template <int kWidth>
struct Numbers {
  float x[kWidth];

  __device__ static Numbers load(const bf16* from) {
    if constexpr (kWidth == 8) {
      return of(*reinterpret_cast<const uint4*>(from));
    } else {
      return {to_float(*from)};
    }
  }
  __device__ static Numbers load(const float* from) {
    if constexpr (kWidth == 8) {
      const float4 a = reinterpret_cast<const float4*>(from)[0];
      const float4 b = reinterpret_cast<const float4*>(from)[1];
      return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    } else {
      return {*from};
    }
  }
  // From memory that the kernel does not write, so that loads may go before stores.
  __device__ static Numbers load_fixed(const bf16* from) {
    if constexpr (kWidth == 8) {
      return of(__ldg(reinterpret_cast<const uint4*>(from)));
    } else {
      return {to_float(__ldg(from))};
    }
  }
  __device__ static Numbers load_fixed(const float* from) { return load(from); }
  template <class T>
  __device__ void store(T* to) const {
    if constexpr (kWidth == 8 && sizeof(T) == 4) {
      reinterpret_cast<float4*>(to)[0] = {x[0], x[1], x[2], x[3]};
      reinterpret_cast<float4*>(to)[1] = {x[4], x[5], x[6], x[7]};
    } else if constexpr (kWidth == 8) {
      *reinterpret_cast<Bf16x8*>(to) = pack_bf16(x);
    } else {
      *to = from_float<T>(x[0]);
    }
  }
  // Of a vector of bf16.
  __device__ static Numbers of(uint4 words) {
    const Bf16x8 all = {words.x, words.y, words.z, words.w};
    Numbers v;
#pragma unroll
    for (int e = 0; e < 8; ++e) v.x[e] = all[e];
    return v;
  }
};

__device__ inline uint32_t word_of(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// f of two pairs of numbers that lie in words.
template <class Pair, class F>
__device__ inline uint32_t of_pairs(uint32_t x, uint32_t y, const F& f) {
  Pair a, b;
  memcpy(&a, &x, 4);
  memcpy(&b, &y, 4);
  a = f(a, b);
  uint32_t word;
  memcpy(&word, &a, 4);
  return word;
}

// Products of two pairs of bf16.
__device__ inline uint32_t multiply_pairs(uint32_t x, uint32_t y) {
  return of_pairs<__nv_bfloat162>(x, y, [](auto a, auto b) { return __hmul2(a, b); });
}

// Four numbers in e4m3 times a power of two as bf16, in two pairs, exactly: exponent and mantissa
// move to where bf16 has them, three bits further down, and the product by that power times 2^120,
// which `by` has twice, mends the exponent, of subnormal numbers too. (Of e4m3's two that are no
// numbers this makes 480.)
inline constexpr uint32_t kE4m3Power = 0x7B807B80u;  // of e4m3 as it is
__device__ inline uint2 e4m3_pairs(uint32_t bytes, uint32_t by) {
  const auto pair = [&](uint32_t order) {
    const uint32_t two = __byte_perm(bytes, 0, order);
    return multiply_pairs((two & 0x80008000u) | (two >> 4 & 0x07f007f0u), by);
  };
  return {pair(0x1404), pair(0x3424)};
}

// Four signed bytes as bf16, in two pairs, exactly: 128 + 7 bits, less 128, or 256 where the eighth
// is set.
__device__ inline uint2 signed_pairs(uint32_t bytes) {
  const auto pair = [&](uint32_t order) {
    const uint32_t both = __byte_perm(bytes, 0x43434343u, order);
    return of_pairs<__nv_bfloat162>(both & 0xFF7FFF7Fu, both & 0xFF80FF80u,
                                    [](auto a, auto b) { return __hsub2(a, b); });
  };
  return {pair(0x4140), pair(0x4342)};
}

// The same as f16: 1024 + 128 + a byte, less 1152.
__device__ inline uint2 signed_f16_pairs(uint32_t bytes) {
  const auto pair = [&](uint32_t order) {
    const uint32_t both = __byte_perm(bytes ^ 0x80808080u, 0x64646464u, order);
    constexpr uint32_t k1152 = 0x64806480u;
    return of_pairs<__half2>(both, k1152, [](auto a, auto b) { return __hsub2(a, b); });
  };
  return {pair(0x4140), pair(0x4342)};
}

// A key whose unsigned order is the order of the floats.
__device__ inline uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);  // -0 is 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The float of a key.
__device__ inline float from_ordered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

}  // namespace ei::cuda
