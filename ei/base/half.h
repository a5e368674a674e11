#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "ei/base/dtype.h"

namespace ei {

inline float from_bf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// To nearest, ties to even; NaN stays NaN.
inline uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float from_f16(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
  if (magnitude >= 0x7C00)  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  // The exponent is 112 too small; the product mends it, for subnormal numbers too.
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
}

// Element i of an array of `type`.
inline float load(const void* data, DType type, int64_t i) {
  switch (type) {
    case DType::kBF16:
      return from_bf16(static_cast<const uint16_t*>(data)[i]);
    case DType::kF16:
      return from_f16(static_cast<const uint16_t*>(data)[i]);
    case DType::kF32:
      break;
  }
  return static_cast<const float*>(data)[i];
}

}  // namespace ei
