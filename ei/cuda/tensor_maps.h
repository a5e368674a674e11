#pragma once

#include <cuda.h>

#include <cstdint>

#include "ei/cuda/memory.h"
#include "ei/ops/tensor.h"

namespace ei::cuda {

// Descriptors for the bulk tensor copy engine, with the 128-byte swizzle unless said.

// Rows of queries [n, n_heads * d]: a box is n_rows rows by 64 columns of one head. Coordinates
// {0, row, column / 64}.
CUtensorMap query_map(const Act& q, int64_t n_rows);

// All of the backend's memory as groups of 8 rows of d numbers, whatever page they are in: a box is
// n_groups groups, in shared memory [n_groups, d / 64, 8, 64]. Coordinates {0, 0, 0, group},
// counted from memory.lowest(). A group at -1 reads zeros.
CUtensorMap row_group_map(const Memory& memory, int64_t d, int n_groups);

// Heads of d numbers of a byte each, 64 or 128, [n, n_heads, d]: a box is n_rows rows of a head, in
// shared memory [n_rows, d], in the swizzle of d bytes. Coordinates {d * head, row}.
CUtensorMap byte_map(const void* data, int64_t n, int64_t n_heads, int64_t d, int n_rows);

}  // namespace ei::cuda
