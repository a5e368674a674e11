#pragma once

#include <cstdint>

namespace ei {

// What products of more than 8 rows and a prompt's attention take: numbers rounded to bf16 where a
// unit multiplies such, or floats (in attention perhaps sums of two in bf16); beside quantized
// weights whole numbers of 16 bits, or floats. kFP8: a layer's matrices in e4m3, and what more than
// 8 rows of them are multiplied with, each row with a scale; on a GPU.
enum class Math : uint8_t { kBF16, kF32, kFP8 };

}  // namespace ei
