#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "ei/base/dtype.h"
#include "ei/base/host_device.h"

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

EI_HOST_DEVICE inline float from_f16(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
  if (magnitude >= 0x7C00)  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  // The exponent is 112 too small; the product mends it, for subnormal numbers too.
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
}

// To nearest, ties to even; NaN stays NaN.
inline uint16_t to_f16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00;
  } else if (magnitude >= 0x47800000u) {  // 2^16
    half = 0x7C00;
  } else if (magnitude < 0x38800000u) {  // 2^-14: a multiple of 2^-24
    half = static_cast<uint32_t>(std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24f));
  } else {
    half = (magnitude - (112u << 23) + 0xFFF + (magnitude >> 13 & 1)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

// 8 bits: a sign, 4 of exponent, 3 of mantissa; up to 448, no infinity (e4m3fn).
inline float from_e4m3(uint8_t bits) {
  if ((bits & 0x7F) == 0x7F) return std::bit_cast<float>(0x7FC00000u);
  return from_f16(static_cast<uint16_t>((bits & 0x80) << 8 | (bits & 0x7F) << 7)) * 256;
}

// To nearest, ties to even; what is larger becomes 448; NaN stays NaN.
inline uint8_t to_e4m3(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 24 & 0x80u, magnitude = bits & 0x7FFFFFFFu;
  uint32_t byte;
  if (magnitude > 0x7F800000u) {
    byte = 0x7F;
  } else if (magnitude >= 0x43E00000u) {  // 448
    byte = 0x7E;
  } else if (magnitude < 0x3C800000u) {  // 2^-6: a multiple of 2^-9
    byte = static_cast<uint32_t>(std::nearbyint(std::bit_cast<float>(magnitude) * 512));
  } else {
    byte = (magnitude - (120u << 23) + 0x7FFFF + (magnitude >> 20 & 1)) >> 20;
  }
  return static_cast<uint8_t>(sign | byte);
}

// Element i of an array of `type`; of kQ8 and kFP8 without its scale.
inline float load(const void* data, DType type, int64_t i) {
  switch (type) {
    case DType::kBF16:
      return from_bf16(static_cast<const uint16_t*>(data)[i]);
    case DType::kF16:
      return from_f16(static_cast<const uint16_t*>(data)[i]);
    case DType::kQ8:
      return static_cast<const int8_t*>(data)[i];
    case DType::kFP8:
      return from_e4m3(static_cast<const uint8_t*>(data)[i]);
    case DType::kF32:
      break;
  }
  return static_cast<const float*>(data)[i];
}

}  // namespace ei
