#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "ei/base/dtype.h"

namespace ei {

// How a weight matrix is stored: apart from DType, the numbers that caches and files hold. Each row
// is a run of blocks, each block `weights` of its numbers in `bytes`. FP8 and INT8 are what
// safetensors' numbers of 8 bits become with the scales beside them; the other quantized formats
// are GGUF's. weight_blocks.h has their formulas.
enum class WeightFormat : uint8_t {
  kF32,
  kF16,
  kBF16,
  kFP8,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
  kINT8,
};

struct WeightBlock {
  std::string_view name;  // as safetensors and GGUF spell it
  int64_t weights;
  int64_t bytes;
};
inline constexpr WeightBlock kWeightBlocks[] = {
    {"F32", 1, 4},      {"F16", 1, 2},      {"BF16", 1, 2},     {"FP8", 32, 36},
    {"Q8_0", 32, 34},   {"Q4_0", 32, 18},   {"Q4_1", 32, 20},   {"Q5_0", 32, 22},
    {"Q5_1", 32, 24},   {"Q2_K", 256, 84},  {"Q3_K", 256, 110}, {"Q4_K", 256, 144},
    {"Q5_K", 256, 176}, {"Q6_K", 256, 210}, {"IQ4_NL", 32, 18}, {"IQ4_XS", 256, 136},
    {"INT8", 32, 36}};

constexpr const WeightBlock& block_of(WeightFormat format) {
  return kWeightBlocks[static_cast<int>(format)];
}
constexpr bool is_quantized(WeightFormat format) { return block_of(format).weights > 1; }
// Whole numbers times scales, which all quantized weights are but FP8.
constexpr bool is_integer(WeightFormat format) { return format >= WeightFormat::kQ8_0; }
constexpr WeightFormat format_of(DType type) {
  return type == DType::kF32   ? WeightFormat::kF32
         : type == DType::kF16 ? WeightFormat::kF16
                               : WeightFormat::kBF16;
}
// Of a format that is not quantized.
constexpr DType dtype_of(WeightFormat format) {
  return format == WeightFormat::kF32   ? DType::kF32
         : format == WeightFormat::kF16 ? DType::kF16
                                        : DType::kBF16;
}
// Of a row of `cols` weights, whole blocks.
constexpr int64_t row_bytes(WeightFormat format, int64_t cols) {
  return cols / block_of(format).weights * block_of(format).bytes;
}
// By its name; nothing for others.
constexpr std::optional<WeightFormat> weight_format(std::string_view name) {
  for (int i = 0; const WeightBlock& block : kWeightBlocks) {
    if (block.name == name) return static_cast<WeightFormat>(i);
    ++i;
  }
  return std::nullopt;
}

}  // namespace ei
