#pragma once

#include "ei/base/dtype.h"

namespace ei::test {

// Written with exponents and not with bit tricks, to be independent of what is tested.

// The number nearest to `value` that the type holds, ties to even.
double round_to(DType dtype, double value);
// Rounds and stores, loads: dtype_bytes(dtype) bytes at any address.
void encode(double value, DType dtype, char* to);
double decode(const char* from, DType dtype);

}  // namespace ei::test
