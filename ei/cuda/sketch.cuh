#pragma once

#include "ei/cuda/device/cache_rows.cuh"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/stream.h"
#include "ei/ops/estimate_mass.h"

// EstimateMass by sketches. Asked queries and all keys are projected and rounded to bytes. A sweep
// of products over all keys leaves every query's logits of blocks, in 16 bits, and its highest of
// them; from these come the exponentials, one for 8 asked queries and a block.
//
// Keys lie in memory as operands of the products, an octet of blocks by 16 keys at a time, and so
// that of the 16 times 8 columns thread l of a warp gets all 16 keys of two blocks for its rows:
// the highest needs no other thread. Blocks of other sizes are filled up to a multiple of 16 by
// their last key.
namespace ei::cuda {

inline constexpr int kSlots = 16;          // keys of a block at a time
inline constexpr int kOctet = 8;           // blocks that are multiplied together
inline constexpr int kMaxSteps = 6;        // of 16 directions
inline constexpr int kSplit = 128;         // tiles of a thread block of the sweep, and octets
inline constexpr int kBlockGroups = 32;    // groups of queries of a thread block of the sweep
inline constexpr int kUnseen = INT16_MIN;  // the logit of a block without a key that a query sees
static_assert(kSketchGroup == 8);

struct Sketches {
  // What is estimated: segments [first_segment, first_segment + n_segments) of the text.
  int64_t first_segment, n_segments;
  int64_t segment, block;
  int heads;   // query heads of a KV head
  int groups;  // of 8 asked queries of a segment and head
  float scale;
  const bf16* q;  // from the first of these segments on
  int64_t q_cols;
  CacheRows rows;
  int64_t n_blocks;         // up to the end of the last segment
  const float* directions;  // [n_kv_heads, w, d]
  const float* mean;        // [n_kv_heads, w]
  int w, steps;             // steps: of 16 directions
  int shift;                // what of a product is left out
  // Of every KV head:
  uint32_t* keys;     // [tiles, 2, ...]: see above
  float* key_step;    // [tiles / 2, 4, 2, 2]: as logits, of each tile of the block
  uint32_t* queries;  // [segments, heads, groups, 8, steps * 4]
  uint32_t* asked;    // [rows of queries] where in their segment they stand
  float* query_step;  // [rows of queries]
  uint32_t* top;      // [rows of queries] in the order of ordered()
  // Of the segments that are being worked on.
  uint32_t* logits;  // [n_kv_heads, padded_groups(), tiles / 2, 8, 4, 2]: of a row and of two tiles
                     // each two blocks that follow each other, 16 bits of each
  float* e;          // [n_kv_heads, end_group - first_group, octets * 8]
  float* sums;       // [n_kv_heads, end_group - first_group, splits]
  int first_group, end_group;

  __host__ __device__ int64_t octets() const { return (n_blocks + kOctet - 1) / kOctet; }
  __host__ __device__ int64_t splits() const { return (octets() + kSplit - 1) / kSplit; }
  __host__ __device__ int runs() const { return static_cast<int>((block + kSlots - 1) / kSlots); }
  // Of 16 keys of an octet's blocks, those of an octet one after another; whole stages.
  __host__ __device__ int64_t tiles() const { return (octets() * runs() + 7) / 8 * 8; }
  // Up to the end of the group's segment.
  __device__ int tiles_of(int group) const {
    return static_cast<int>(((start_of(group) + segment) / block + kOctet - 1) / kOctet) * runs();
  }
  __host__ __device__ int padded_groups() const {
    return (end_group - first_group + kBlockGroups - 1) / kBlockGroups * kBlockGroups;
  }
  // A key's bytes, with room for whole operands.
  __host__ __device__ static constexpr int row_bytes(int steps) {
    return steps <= 2 ? 32 : steps <= 4 ? 64 : 128;
  }
  // Of a tile.
  __host__ __device__ int tile_words() const { return kOctet * kSlots * row_bytes(steps) / 4; }
  __host__ __device__ int segment_groups() const { return heads * groups; }
  __host__ __device__ int64_t query_rows() const { return n_segments * segment_groups() * 8; }
  // Of the group's segment, in the text.
  __device__ int64_t start_of(int group) const {
    return (first_segment + group / segment_groups()) * segment;
  }
};

// run.operator()<steps>().
template <int kSteps = 1, class Run>
void with_steps(int steps, const Run& run) {
  if constexpr (kSteps < kMaxSteps)
    if (steps > kSteps) return with_steps<kSteps + 1>(steps, run);
  run.template operator()<kSteps>();
}

// Writes queries and keys in bytes, what their steps stand for, and clears `top`.
void project_sketches(const Sketches& of, int64_t n_kv_heads, bool bf16_keys, int n_sms,
                      Stream& stream);

}  // namespace ei::cuda
