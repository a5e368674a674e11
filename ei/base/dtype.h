#pragma once

#include <cstdint>

namespace ei {

// How numbers are stored. Sums are always float or wider. Numbers in kQ8 are whole, -127 to 127,
// those in kFP8 e4m3, or whole in keys; they share a scale, which whoever holds them has beside
// them; caches alone have such.
enum class DType : uint8_t { kF32, kF16, kBF16, kQ8, kFP8 };

constexpr int64_t dtype_bytes(DType type) {
  return type == DType::kF32 ? 4 : type == DType::kQ8 || type == DType::kFP8 ? 1 : 2;
}
constexpr const char* dtype_name(DType type) {
  constexpr const char* kNames[] = {"f32", "f16", "bf16", "q8_0", "fp8"};
  return kNames[static_cast<int>(type)];
}

}  // namespace ei
