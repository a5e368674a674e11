#pragma once

#include "ei/cuda/stream.h"
#include "ei/ops/estimate_mass.h"

namespace ei::cuda {

// Exponentials of blocks, of which EstimateMass makes shares: rows of queries that share them,
// those of a segment one after another.
struct Exponentials {
  const float* e = nullptr;  // [n_kv_heads, rows of the segments, stride], of a block each
  int64_t stride = 0;
  const float* sums = nullptr;  // [n_kv_heads, rows of the segments, parts]
  int64_t parts = 0;            // of a row, those up to the segment's end: of part_blocks each
  int64_t part_blocks = 0;
  int64_t rows = 0;       // of a segment
  bool together = false;  // all rows are divided by one sum, and not each by its own
};

// Which of a chunk's segments: [begin, begin + count), counted from the chunk's first.
struct Segments {
  int64_t begin = 0;
  int64_t count = 0;
};

// As many segments at a time as leave room for the rest: floats of scratch.
inline constexpr int64_t kMostExponentials = int64_t{64} << 20;

// Writes mass, own and entropy of these segments.
void share_out(const EstimateMass& op, Segments segments, const Exponentials& of, Stream& stream);

}  // namespace ei::cuda
