#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "ei/cuda/device/numbers.cuh"
#include "ei/ops/weight_blocks.h"

// Quantized weights in registers: ei/ops/weight_blocks.h has the formulas, and the scales.
namespace ei::cuda {

// What a block's numbers are as bytes: signed, e4m3, or from 0 on with this number for 0.
constexpr bool is_signed(WeightFormat format) {
  using enum WeightFormat;
  return format == kQ8_0 || format == kINT8 || format == kIQ4_NL || format == kIQ4_XS;
}
constexpr int zero_of(WeightFormat format) {
  using enum WeightFormat;
  return format == kQ3_K   ? 4
         : format == kQ4_0 ? 8
         : format == kQ5_0 ? 16
         : format == kQ6_K ? 32
                           : 0;
}

// Four bytes, at an address as even as blocks are long.
template <WeightFormat kFormat>
__device__ uint32_t word_at(const uint8_t* at) {
  if constexpr (block_of(kFormat).bytes % 4 == 0) {
    return *reinterpret_cast<const uint32_t*>(at);
  } else {
    const auto* halves = reinterpret_cast<const uint16_t*>(at);
    return halves[0] | uint32_t{halves[1]} << 16;
  }
}

// The values of IQ4_NL by four numbers of 4 bits, one a byte.
__device__ inline uint32_t look_up(uint32_t numbers) {
  const uint32_t packed = __byte_perm(numbers | numbers >> 4, 0, 0x4420);
  const uint32_t low = __byte_perm(0xBFAD9881u, 0xF6EADDCFu, packed & 0x7777);
  const uint32_t high = __byte_perm(0x26190D01u, 0x71594535u, packed & 0x7777);
  return __byte_perm(low, high, 0x3210 | (packed & 0x8888) >> 1);
}

// Numbers column + more to column + more + 3 of a block, one a byte. 16 divides column, which
// compilers know, so that they see which words are the same; more is 0, 4, 8 or 12.
template <WeightFormat kFormat>
__device__ uint32_t numbers_at(const uint8_t* block, int column, int more) {
  using enum WeightFormat;
  const int in_32 = column % 32;
  const auto word = [&](int at) { return word_at<kFormat>(block + more + at); };
  if constexpr (kFormat == kQ8_0 || kFormat == kINT8) {
    return word((kFormat == kQ8_0 ? 2 : 4) + column);
  } else if constexpr (kFormat == kQ2_K || kFormat == kQ3_K) {
    const int at = (kFormat == kQ2_K ? 16 : 32) + column / 128 * 32 + in_32;
    const uint32_t low = word(at) >> column % 128 / 32 * 2 & 0x03030303u;
    if constexpr (kFormat == kQ2_K) return low;
    return low | (word(in_32) >> column / 32 & 0x01010101u) << 2;
  } else if constexpr (kFormat == kQ4_K || kFormat == kQ5_K) {
    const int at = (kFormat == kQ5_K ? 48 : 16) + column / 64 * 32 + in_32;
    const uint32_t low = word(at) >> column % 64 / 32 * 4 & 0x0F0F0F0Fu;
    if constexpr (kFormat == kQ4_K) return low;
    return low | (word(16 + in_32) >> column / 32 & 0x01010101u) << 4;
  } else if constexpr (kFormat == kQ6_K) {
    const int half = column / 128, quarter = column % 128 / 32;
    const uint32_t low =
        word(64 * half + quarter % 2 * 32 + in_32) >> quarter / 2 * 4 & 0x0F0F0F0Fu;
    return low | (word(128 + 32 * half + in_32) >> 2 * quarter & 0x03030303u) << 4;
  } else {                                           // halves of 16 bytes for every 32 numbers
    constexpr int kBits = kFormat == kQ5_0 ? 2 : 4;  // where the fifth bits are
    constexpr int kAt = kFormat == kQ4_0 || kFormat == kIQ4_NL ? 2
                        : kFormat == kQ4_1                     ? 4
                        : kFormat == kIQ4_XS                   ? 8
                                                               : kBits + 4;
    const uint32_t low = word(kAt + column / 32 * 16) >> in_32 / 16 * 4 & 0x0F0F0F0Fu;
    if constexpr (kFormat == kIQ4_NL || kFormat == kIQ4_XS) return look_up(low);
    if constexpr (kFormat == kQ4_0 || kFormat == kQ4_1) return low;
    const uint32_t fifth = word_at<kFormat>(block + kBits) >> (in_32 + more) & 15;
    return low | (fifth * 0x00204081u & 0x01010101u) << 4;  // spread over four bytes
  }
}

// Four such bytes as bf16, in two pairs, each number too large by kSurplus: one instruction a pair
// puts a number below the exponent of 128. Exact.
template <WeightFormat kFormat>
inline constexpr int kSurplus = is_signed(kFormat) || kFormat == WeightFormat::kFP8
                                    ? 0
                                    : 128 + zero_of(kFormat);

template <WeightFormat kFormat>
__device__ uint2 bf16_pairs(uint32_t bytes) {
  if constexpr (kFormat == WeightFormat::kFP8) {
    return e4m3_pairs(bytes, kE4m3Power);
  } else if constexpr (is_signed(kFormat)) {
    return signed_pairs(bytes);
  } else {
    return {__byte_perm(bytes, 0x43434343u, 0x4140), __byte_perm(bytes, 0x43434343u, 0x4342)};
  }
}

// How the pairs above become weights:  scale * pair - offset,  a line for each group.
template <WeightFormat kFormat>
struct Lines {
  static constexpr int kSize = static_cast<int>(block_of(kFormat).weights);
  static constexpr int kGroup = static_cast<int>(group_of(kFormat));
  static constexpr int kGroups = kSize / kGroup;
  static constexpr bool kOffsets = kSurplus<kFormat> != 0;

  float2 line[kGroups];  // scale, offset

  __device__ explicit Lines(const uint8_t* block) {
    float scale[kGroups], offset[kGroups];
    if constexpr (kFormat == WeightFormat::kQ4_K || kFormat == WeightFormat::kQ5_K) {
      const auto* words = reinterpret_cast<const uint32_t*>(block);  // four loads, not sixteen
      const uint32_t head[4] = {words[0], words[1], words[2], words[3]};
      unpack_scales<kFormat>(reinterpret_cast<const uint8_t*>(head), scale, offset);
    } else {
      unpack_scales<kFormat>(block, scale, offset);
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
      line[g] = {scale[g], (has_offset(kFormat) ? offset[g] : 0) + scale[g] * kSurplus<kFormat>};
  }
};

}  // namespace ei::cuda
