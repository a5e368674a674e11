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

// Numbers column to column + 3 of a block as they lie in memory, one a byte. 4 divides column.
template <WeightFormat kFormat>
__device__ uint32_t numbers_at(const uint8_t* block, int column) {
  using enum WeightFormat;
  const int in_32 = column % 32;
  const auto word = [&](int at) { return word_at<kFormat>(block + at); };
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
    const uint32_t low = word(kAt + column / 32 * 16 + in_32 % 16) >> in_32 / 16 * 4 & 0x0F0F0F0Fu;
    if constexpr (kFormat != kQ5_0 && kFormat != kQ5_1) return low;
    const uint32_t fifth = word_at<kFormat>(block + kBits) >> in_32 & 15;
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
  } else if constexpr (kFormat == WeightFormat::kIQ4_NL || kFormat == WeightFormat::kIQ4_XS) {
    return signed_pairs(look_up(bytes));
  } else if constexpr (is_signed(kFormat)) {
    return signed_pairs(bytes);
  } else {
    return {__byte_perm(bytes, 0x43434343u, 0x4140), __byte_perm(bytes, 0x43434343u, 0x4342)};
  }
}

}  // namespace ei::cuda
