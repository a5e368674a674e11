#pragma once

#include <cstring>
#include <iterator>

#include "ei/base/half.h"
#include "ei/ops/weight_format.h"

namespace ei {

// Whether every group of the format's weights has an offset, and how many weights a group has.
constexpr bool has_offset(WeightFormat format) {
  using enum WeightFormat;
  return format == kQ4_1 || format == kQ5_1 || format == kQ2_K || format == kQ4_K ||
         format == kQ5_K;
}
constexpr int64_t group_of(WeightFormat format) {
  using enum WeightFormat;
  return format == kQ2_K || format == kQ3_K || format == kQ6_K ? 16 : 32;
}

// A block of integer weights taken apart:  weight = scale * q - offset,  where each group of
// group_of(kFormat) weights has its scale and, if the format has_offset(), its offset.
// |q| <= 128. Formulas with d, m and dmin (f16) as the block stores them:
//   Q8_0    q in 8 bits                          scale d
//   Q4_0    q in 4 bits, - 8                     scale d
//   Q4_1    q in 4 bits                          scale d           offset -m
//   Q5_0    q in 4 bits and one beside, - 16     scale d
//   Q5_1    q in 4 bits and one beside           scale d           offset -m
//   IQ4_NL  one of 16 values by 4 bits           scale d
//   Q2_K    q in 2 bits                          scale d * 4 bits  offset dmin * 4 bits
//   Q3_K    q in 2 bits and one beside, - 4      scale d * (6 bits - 32)
//   Q4_K    q in 4 bits                          scale d * 6 bits  offset dmin * 6 bits
//   Q5_K    q in 4 bits and one beside           scale d * 6 bits  offset dmin * 6 bits
//   Q6_K    q in 4 bits and two beside, - 32     scale d * 8 bits
//   IQ4_XS  as IQ4_NL                            scale d * (6 bits - 32)
//   INT8    q in 8 bits                          scale d, a float
// FP8 has a float scale as well, and 32 numbers of 8 bits (e4m3) that it multiplies.
// Plain loops over bytes, inlined for compilers to turn into whatever instructions the caller may
// use.

[[gnu::always_inline]] inline float float_at(const uint8_t* at) {
  float value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
[[gnu::always_inline]] inline float half_at(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return from_f16(bits);
}

// q of a block's weights.
template <WeightFormat kFormat>
[[gnu::always_inline]] inline void unpack_numbers(const uint8_t* block, int16_t* __restrict q) {
  using enum WeightFormat;
  constexpr int16_t kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
  if constexpr (kFormat == kQ8_0 || kFormat == kINT8) {
    const auto* values = reinterpret_cast<const int8_t*>(block + (kFormat == kQ8_0 ? 2 : 4));
    for (int i = 0; i < 32; ++i) q[i] = values[i];
  } else if constexpr (kFormat == kQ4_0 || kFormat == kQ4_1) {
    const uint8_t* nibbles = block + (kFormat == kQ4_1 ? 4 : 2);
    constexpr int kZero = kFormat == kQ4_0 ? 8 : 0;
    for (int i = 0; i < 16; ++i) {
      q[i] = static_cast<int16_t>((nibbles[i] & 15) - kZero);
      q[i + 16] = static_cast<int16_t>((nibbles[i] >> 4) - kZero);
    }
  } else if constexpr (kFormat == kQ5_0 || kFormat == kQ5_1) {
    constexpr int kAt = kFormat == kQ5_1 ? 4 : 2, kZero = kFormat == kQ5_0 ? 16 : 0;
    uint8_t fifth[32];
    for (int byte = 0; byte < 4; ++byte) {  // bit i to 16 in byte i
      const uint64_t bits = block[kAt + byte] * 0x0101010101010101u & 0x8040201008040201u;
      const uint64_t spread = (bits + 0x7F7F7F7F7F7F7F7Fu) >> 3 & 0x1010101010101010u;
      std::memcpy(fifth + 8 * byte, &spread, sizeof spread);
    }
    const uint8_t* nibbles = block + kAt + 4;
    for (int i = 0; i < 16; ++i) {
      q[i] = static_cast<int16_t>(((nibbles[i] & 15) | fifth[i]) - kZero);
      q[i + 16] = static_cast<int16_t>((nibbles[i] >> 4 | fifth[i + 16]) - kZero);
    }
  } else if constexpr (kFormat == kQ2_K || kFormat == kQ3_K) {
    constexpr bool kTwo = kFormat == kQ2_K;
    const uint8_t* twos = block + (kTwo ? 16 : 32);
    for (int part = 0; part < 8; ++part) {  // of 32 weights, whose bits have one place in a byte
      const uint8_t* from = twos + part / 4 * 32;
      const int shift = part % 4 * 2;
      for (int i = 0; i < 32; ++i) {
        const int low = from[i] >> shift & 3;
        q[part * 32 + i] = static_cast<int16_t>(kTwo ? low : low - 4 + 4 * (block[i] >> part & 1));
      }
    }
  } else if constexpr (kFormat == kQ4_K || kFormat == kQ5_K) {
    constexpr bool kFive = kFormat == kQ5_K;
    const uint8_t* fifth = block + 16;
    const uint8_t* nibbles = block + (kFive ? 48 : 16);
    for (int pair = 0; pair < 4; ++pair, nibbles += 32, q += 64) {
      for (int i = 0; i < 32; ++i) {
        int low = nibbles[i] & 15, high = nibbles[i] >> 4;
        if constexpr (kFive) {
          low |= (fifth[i] >> 2 * pair & 1) << 4;
          high |= (fifth[i] >> (2 * pair + 1) & 1) << 4;
        }
        q[i] = static_cast<int16_t>(low);
        q[i + 32] = static_cast<int16_t>(high);
      }
    }
  } else if constexpr (kFormat == kQ6_K) {
    for (int part = 0; part < 2; ++part, q += 128) {
      const uint8_t *low = block + 64 * part, *high = block + 128 + 32 * part;
      for (int i = 0; i < 32; ++i) {
        q[i] = static_cast<int16_t>(((low[i] & 15) | (high[i] & 3) << 4) - 32);
        q[i + 32] = static_cast<int16_t>(((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4) - 32);
        q[i + 64] = static_cast<int16_t>((low[i] >> 4 | (high[i] >> 4 & 3) << 4) - 32);
        q[i + 96] = static_cast<int16_t>((low[i + 32] >> 4 | high[i] >> 6 << 4) - 32);
      }
    }
  } else {
    static_assert(kFormat == kIQ4_NL || kFormat == kIQ4_XS);
    const uint8_t* nibbles = block + (kFormat == kIQ4_NL ? 2 : 8);
    for (int64_t g = 0; g < block_of(kFormat).weights / 32; ++g, nibbles += 16, q += 32) {
      for (int i = 0; i < 16; ++i) {
        q[i] = kValues[nibbles[i] & 15];
        q[i + 16] = kValues[nibbles[i] >> 4];
      }
    }
  }
}

// Scales of a block's groups, and offsets if the format has them.
template <WeightFormat kFormat>
[[gnu::always_inline]] inline void unpack_scales(const uint8_t* block, float* __restrict scale,
                                                 float* __restrict offset) {
  using enum WeightFormat;
  if constexpr (kFormat == kINT8) {
    scale[0] = float_at(block);
  } else if constexpr (block_of(kFormat).weights == 32) {
    scale[0] = half_at(block);
    if constexpr (has_offset(kFormat)) offset[0] = -half_at(block + 2);
  } else if constexpr (kFormat == kQ2_K) {
    const float d = half_at(block + 80), dmin = half_at(block + 82);
    for (int g = 0; g < 16; ++g) {
      scale[g] = d * static_cast<float>(block[g] & 15);
      offset[g] = dmin * static_cast<float>(block[g] >> 4);
    }
  } else if constexpr (kFormat == kQ3_K) {
    const float d = half_at(block + 108);
    const uint8_t* scales = block + 96;
    for (int g = 0; g < 16; ++g) {
      const int low = scales[g % 8] >> g / 8 * 4 & 15;
      const int high = scales[8 + g % 4] >> g / 4 * 2 & 3;
      scale[g] = d * static_cast<float>((low | high << 4) - 32);
    }
  } else if constexpr (kFormat == kQ4_K || kFormat == kQ5_K) {
    const float d = half_at(block), dmin = half_at(block + 2);
    const uint8_t* scales = block + 4;
    for (int g = 0; g < 4; ++g) {
      scale[g] = d * static_cast<float>(scales[g] & 63);
      offset[g] = dmin * static_cast<float>(scales[g + 4] & 63);
      scale[g + 4] = d * static_cast<float>((scales[g + 8] & 15) | scales[g] >> 6 << 4);
      offset[g + 4] = dmin * static_cast<float>(scales[g + 8] >> 4 | scales[g + 4] >> 6 << 4);
    }
  } else if constexpr (kFormat == kQ6_K) {
    const float d = half_at(block + 208);
    for (int g = 0; g < 16; ++g)
      scale[g] = d * static_cast<float>(static_cast<int8_t>(block[192 + g]));
  } else {
    static_assert(kFormat == kIQ4_XS);
    const float d = half_at(block);
    const int high_bits = block[2] | block[3] << 8;
    for (int g = 0; g < 8; ++g) {
      const int low = block[4 + g / 2] >> g % 2 * 4 & 15;
      scale[g] = d * static_cast<float>((low | (high_bits >> 2 * g & 3) << 4) - 32);
    }
  }
}

// f.template operator()<kFormat>() for the format, which is one of the integer ones.
template <WeightFormat kFirst = WeightFormat::kQ8_0, class F>
auto with_integers(WeightFormat format, const F& f) {
  constexpr int kNext = static_cast<int>(kFirst) + 1;
  if constexpr (kNext < static_cast<int>(std::size(kWeightBlocks)))
    if (format != kFirst) return with_integers<static_cast<WeightFormat>(kNext)>(format, f);
  return f.template operator()<kFirst>();
}

// n numbers of a row, whole blocks of any format, as floats: the numbers that GGUF's own tools
// give, to the bit.
void dequantize(WeightFormat format, const void* blocks, int64_t n, float* to);

// The reverse, for BF16, FP8, Q8_0, Q4_1 and Q4_K: what is nearest, with scales that make the
// squared error small. `from` is within what a half can hold, 65,504.
bool can_quantize(WeightFormat format);
void quantize(WeightFormat format, const float* from, int64_t n, void* blocks);

}  // namespace ei
