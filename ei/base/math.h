#pragma once

#include <cstdint>

namespace ei {

// What goes into products of more than 8 rows, and into attention of a prompt: rounded to bf16
// where the device has a unit that multiplies such numbers, or floats in any case. Beside quantized
// weights activations are whole numbers of 16 bits, or floats. kFP8: a layer's matrices in
// e4m3, and what more than 8 rows of them are multiplied with, each row with a scale; on a GPU.
enum class Math : uint8_t { kBF16, kF32, kFP8 };

}  // namespace ei
