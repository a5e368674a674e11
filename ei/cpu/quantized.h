#pragma once

#include <cstdint>

#include "ei/ops/matmul.h"

namespace ei::cpu {

// Rows of activations as whole numbers of 16 bits, x = scale * q with a scale for every 32 columns,
// beside sums of these products. Products with quantized weights, whole numbers too, are exact
// until they are scaled, and take half the instructions of floats. |q| <= 32,639, so that its two
// bytes can be signed ones: q = 256 high + low. Rounding costs an NMSE of 3e-10 where the 32 are
// alike, 2.5e-9 where one outweighs all others; what is not finite stays so.
struct IntegerRows {
  enum class Form {
    kNumbers,
    kBytes,
    kBytesByFours,  // of every 256 columns the first four of every 16, then the second, ...
  };

  int64_t cols = 0;
  Form form = Form::kNumbers;
  int16_t* q = nullptr;                          // [rows, cols], or
  int8_t *high = nullptr, *low = nullptr;        // [rows, cols]
  float* scale = nullptr;                        // [rows, cols / 32]
  float *sums_32 = nullptr, *sums_16 = nullptr;  // [rows, cols / 32], [rows, cols / 16]

  static int64_t bytes(int64_t rows, int64_t cols) { return rows * (cols * 2 + cols / 32 * 16); }
  IntegerRows() = default;
  IntegerRows(void* memory, int64_t rows, int64_t cols, Form form);
};

// Whether a format's blocks are of 256 weights, which kBytesByFours goes by.
constexpr bool by_fours(WeightFormat format) { return block_of(format).weights == 256; }

// What the products of few rows of so many columns with weights of the format take.
IntegerRows::Form form_of_few(int64_t cols, WeightFormat format);

// Rows [first, last) of x, its columns in the order of a weight's.
void quantize_rows(const Act& x, const int32_t* order, int64_t first, int64_t last,
                   const IntegerRows& to);

// The product of a part whose weight is in an integer format, with x in its order: for outputs
// [begin, end) and all n <= 8 rows, straight from the blocks; and for rows [first, last), by
// `memory` of packed_bytes(end - begin) into which weights are unpacked.
void quantized_dot(const IntegerRows& x, int64_t n, const MatMul::Part& part, int64_t begin,
                   int64_t end);
void quantized_multiply(const IntegerRows& x, const MatMul::Part& part, int64_t first, int64_t last,
                        int64_t begin, int64_t end, void* memory);
int64_t packed_bytes(int64_t outputs);

}  // namespace ei::cpu
