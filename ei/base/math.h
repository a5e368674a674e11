#pragma once

#include <cstdint>

namespace ei {

// What products of more than 8 rows and a prompt's attention take: numbers rounded to bf16 where a
// unit multiplies such, or floats (in attention perhaps sums of two in bf16); beside quantized
// weights whole numbers of 16 bits, or floats. kFP8: products with a layer's matrices in e4m3, with
// a scale for each row of either, on a GPU.
enum class Math : uint8_t { kBF16, kF32, kFP8 };

}  // namespace ei
