#pragma once

#include <array>
#include <type_traits>

#include "ei/base/fail.h"
#include "ei/ops/kv.h"
#include "ei/ops/tensor.h"

// What the check() functions of the ops share. Each throws Error naming the op, the field, what was
// found and what was expected.
namespace ei {

inline void expect_dim(const char* op, const char* field, int64_t got, int64_t want) {
  require(got == want, "{}: {} is {}, expected {}", op, field, got, want);
}
inline void expect_at_least(const char* op, const char* field, int64_t got, int64_t least) {
  require(got >= least, "{}: {} is {}, expected at least {}", op, field, got, least);
}
inline void expect_multiple(const char* op, const char* field, int64_t got, int64_t of) {
  require(of > 0 && got % of == 0, "{}: {} is {}, expected a multiple of {}", op, field, got, of);
}
inline void expect_shape(const char* op, const char* field, const Act& got, int64_t rows,
                         int64_t cols) {
  require(got.rows == rows && got.cols == cols, "{}: {} is [{}, {}], expected [{}, {}]", op, field,
          got.rows, got.cols, rows, cols);
}
template <class T, int N>
void expect_dims(const char* op, const char* field, const View<T, N>& got,
                 const std::type_identity_t<std::array<int64_t, N>>& want) {
  for (size_t i = 0; i < want.size(); ++i)
    require(got.dims[i] == want[i], "{}: dimension {} of {} is {}, expected {}", op, i, field,
            got.dims[i], want[i]);
}

void check(const char* op, const KvLayer& kv);

}  // namespace ei
