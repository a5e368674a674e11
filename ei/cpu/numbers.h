#pragma once

#include <cassert>
#include <cstdint>
#include <cstring>

#include "ei/base/half.h"
#include "ei/base/view.h"
#include "ei/ops/kv.h"
#include "ei/ops/tensor.h"

namespace ei::cpu {

// Keys, or key blocks, are taken so many at a time: as floats a tile stays in L1 or close to it.
inline constexpr int64_t kTileKeys = 128;

inline void store(void* data, DType type, int64_t i, float value) {
  if (type == DType::kBF16) {
    static_cast<uint16_t*>(data)[i] = to_bf16(value);
  } else {
    static_cast<float*>(data)[i] = value;
  }
}

// What all numbers of a row of a cache in kQ8 are to be multiplied by, and number c of any row.
inline float scale_of(const char* row) {
  float scale;
  std::memcpy(&scale, row, sizeof scale);
  return scale;
}
inline float load_number(const char* row, DType type, int64_t c) {
  const float number = load(row + PageLayout::numbers_at(type), type, c);
  return type == DType::kQ8 ? scale_of(row) * number : number;
}

// Activations are float on the CPU.
inline View<float, 2> rows_of(const Act& act) {
  assert(act.elem_bytes == sizeof(float) || act.rows == 0);
  return {static_cast<float*>(act.data), {act.rows, act.cols}};
}

// Where rows of a page are stored.
inline char* page_row(const KvLayer& kv, int64_t head, int64_t page, int64_t row) {
  return static_cast<char*>(kv.pages[head][page]) + row * kv.layout.row_bytes();
}
// K and V of row r of a head.
inline char* key_at(const KvLayer& kv, int64_t head, int64_t r) {
  return page_row(kv, head, r / kv.layout.rows, r % kv.layout.rows);
}
inline char* value_at(const KvLayer& kv, int64_t head, int64_t r) {
  return page_row(kv, head, r / kv.layout.rows, kv.layout.first_value() + r % kv.layout.rows);
}
// Bounds of the keys of block b of a head.
inline char* lowest_at(const KvLayer& kv, int64_t head, int64_t b) {
  const int64_t n = kv.layout.n_blocks();
  return page_row(kv, head, b / n, kv.layout.first_lowest() + b % n * kv.layout.bound_rows());
}
inline char* highest_at(const KvLayer& kv, int64_t head, int64_t b) {
  const int64_t n = kv.layout.n_blocks();
  return page_row(kv, head, b / n, kv.layout.first_highest() + b % n * kv.layout.bound_rows());
}

}  // namespace ei::cpu
