#pragma once

#include <cstdint>

namespace ei {

// How numbers are stored. Sums are always float or wider.
enum class DType : uint8_t { kF32, kF16, kBF16 };

constexpr int64_t dtype_bytes(DType type) { return type == DType::kF32 ? 4 : 2; }
constexpr const char* dtype_name(DType type) {
  return type == DType::kF32 ? "f32" : type == DType::kF16 ? "f16" : "bf16";
}

}  // namespace ei
