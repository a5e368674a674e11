#pragma once

#include <cstdint>

#include "ei/base/dtype.h"
#include "tests/support/array.h"

namespace ei::test {

// Written with exponents and not with bit tricks, to be independent of what is tested.

// The number nearest to `value` that the type holds, ties to even.
double round_to(DType dtype, double value);
// Rounds and stores, loads: dtype_bytes(dtype) bytes at any address.
void encode(double value, DType dtype, char* to);
double decode(const char* from, DType dtype);

// The bf16 next to `value` that is not above it, or not below.
double bf16_down(double value);
inline double bf16_up(double value) { return -bf16_down(-value); }

// The n numbers of a row of a cache; in kQ8 a float stands before them, which is the largest's
// 127th, and by which they are multiplied as floats. In kFP8 it lies elsewhere, at `scale`: of a
// key the least power of 2 of which 127 times is no number above, of a value the least power of 16
// by 448 times.
enum class RowOf { kKey, kValue };
void encode_row(const double* values, int64_t n, DType dtype, RowOf what, char* to,
                float* scale = nullptr);
void decode_row(const char* from, int64_t n, DType dtype, RowOf what, double* to, float scale = 0);
// What is left of rows in a cache of this type.
void round_rows(Matrix& rows, DType dtype, RowOf what = RowOf::kKey);

}  // namespace ei::test
