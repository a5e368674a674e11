#pragma once

#include <algorithm>

#include "ei/base/host_device.h"
#include "ei/ops/kv.h"
#include "ei/ops/tensor.h"
#include "ei/policy/prefill_policy.h"

namespace ei {

// The few directions of a layer's keys that most of what tells them apart lies in: the principal
// ones of every KV head, found once per model (METHOD.md 6). Device memory.
struct SketchBasis {
  View<const float, 3> directions;  // [n_kv_heads, w, d], w a multiple of 4
  View<const float, 2> mean;        // [n_kv_heads, w] of projected keys

  int64_t n_directions() const { return directions.dim(1); }
};

// Of how many queries that follow each other a sketch asks one: each costs the same wherever it
// stands, and what one wants is mostly what its neighbour wants.
inline constexpr int64_t kSketchStride = 2;
// Those asked that follow each other and share an exponential; the last may be fewer.
inline constexpr int64_t kSketchGroup = 8;
EI_HOST_DEVICE constexpr int64_t sketch_groups(int64_t segment) {
  const int64_t step = kSketchStride * kSketchGroup;
  return (segment + step - 1) / step;
}
// Where in its segment the pair begins of which the i-th query that is asked is one; behind the
// last the last again.
EI_HOST_DEVICE constexpr int64_t pair_begin(int64_t i, int64_t segment) {
  return std::min(i, (segment - 1) / kSketchStride) * kSketchStride;
}
// Which of a pair is asked, by the squares of their lengths; `head` counts from its KV head's
// first. The longer as a rule looks at fewer keys, which its neighbour does not know of. Where both
// are about as long heads take turns, so that every position is asked by some.
EI_HOST_DEVICE constexpr int64_t asked_of_pair(float first, float second, int64_t head) {
  constexpr float kLonger = 1.2f;
  if (first > kLonger * second) return 0;
  return second > kLonger * first ? 1 : head % 2;
}
// What a step of a query's whole numbers stands for, of its projection's highest number and the
// highest sum of a part's. They are at most 127, and add up to so little that a kernel may add
// products with keys in 16 bits: a run of 6 groups of four dimensions, two of each four apart from
// the other two. Rounding up adds half a step to each of the 12 numbers of such a part.
inline constexpr int64_t kSketchRun = 6;
EI_HOST_DEVICE inline float sketch_step(float most, float most_of_part) {
  constexpr float kMostPart = 32767 / 63 - kSketchRun;
  return std::max(most / 127, most_of_part / kMostPart);
}

// The last bits of such a product, of w numbers, that are left out: what stays fits 16. Twice
// kSketchRun numbers give no more than 15 bits, with a sign.
EI_HOST_DEVICE inline int sketch_shift(int64_t w) {
  int shift = 1;
  while ((2 * kSketchRun << shift) < w) ++shift;
  return shift;
}

// What share of the attention of each query segment of a chunk goes to each key block before it,
// and to the segment itself, as estimated for much less than attention costs (METHOD.md 4 and 6):
// mass[k,s,b] >= 0 for blocks b < sS/B and own[k,s] >= 0, which sum to 1. Both are means over the G
// query heads of KV head k of, for one of them, with x the scaled logits q . k * scale:
//
//   kSketch         q and k - mean projected to the basis' directions and rounded, k to 63 steps
//                   either side of 0 with a scale for each block, q to at most 127 with a scale for
//                   each query; their product less its last sketch_shift() bits. Of query i, if
//                   it is asked, a block's logit is the highest x of the keys j <= i in it;
//                   relative to i's highest of all blocks; of kSketchGroup asked queries that
//                   follow each other the highest. p = softmax over all blocks, those of the
//                   segment included; its mean over the segment's groups.
//   kAntidiagonals  z[r,c] = mean over t < T of x between query rT + T-1-t and key cT + t, with
//                   T = stride; p = softmax over c <= r; a block's is the sum over its c; its mean
//                   over the segment's r.
//   kMeanKeys       x between query i and the mean of a block's keys, relative to i's highest
//                   of all blocks up to the segment's end; the sum over the segment's queries of
//                   the exponentials, over all blocks' sum.
//
// Segments before dense_before or from dense_from on attend to everything: nothing is estimated
// for them, their entropy is 0; all others are whole. entropy is that of the shares in nats, the
// segment's own being one of them: for who wants to look. Nothing depends on where a chunk begins
// or ends, or on threads. Numerics: integers for kSketch, exact until they are scaled; else float
// products. The shares of a segment are off by 1e-5 in all (kSketch: against the same roundings of
// projections in double, but for the few that lie between two steps).
struct EstimateMass {
  Estimate estimate = Estimate::kSketch;  // not kBounds
  Act q;                                  // [n, n_heads * d]: the chunk
  int64_t begin = 0;                      // position of row 0, a multiple of segment
  int64_t segment = 0;
  int64_t block = 0;
  float scale = 1;           // 1 / sqrt(d)
  int64_t stride = 0;        // of kAntidiagonals; divides block
  SketchBasis basis;         // of kSketch, if any segment is estimated
  int64_t dense_before = 0;  // segments
  int64_t dense_from = INT64_MAX;
  KvLayer kv;              // with the chunk's keys; needs no key bounds
  View<float, 3> mass;     // out: [n_kv_heads, n_segments of the chunk, >= past blocks of its last]
  View<float, 2> own;      // out: [n_kv_heads, n_segments]
  View<float, 3> entropy;  // out: [>= all segments up to the chunk's last, n_layers, n_kv_heads]
  int64_t layer = 0;       // of entropy
};
void check(const EstimateMass& op);

}  // namespace ei
