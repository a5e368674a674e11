#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "ei/cuda/device/reduce.cuh"

// The highest of n keys, by one thread block of kTopThreads or by a cluster of kBlocks of them that
// share the keys; all call in step. A radix select, 11 bits at a time from the top.
namespace ei::cuda {

inline constexpr int kTopThreads = 1024;
inline constexpr int kTopBins = 2048;
inline constexpr int kTopBatch = 4;  // keys a thread has under way

// Amount: unsigned, or unsigned long long.
template <class Amount>
struct TopScratch {
  Amount histogram[kTopBins];
  Amount parts[32];
  Amount left;
  uint32_t key;
};

// The thread blocks that select together: each has a run of the keys.
template <int kBlocks>
struct Team {
  __device__ static int rank() {
    return kBlocks == 1 ? 0 : static_cast<int>(cooperative_groups::this_cluster().block_rank());
  }
  // Shared memory of all blocks is as written before.
  __device__ static void sync() {
    if constexpr (kBlocks == 1) {
      __syncthreads();
    } else {
      cooperative_groups::this_cluster().sync();
    }
  }
  // Of what the first n blocks have at this place of their shared memory.
  template <class T>
  __device__ static T sum(T* shared, int n = kBlocks) {
    if constexpr (kBlocks == 1) return n == 0 ? T{0} : *shared;
    T total = 0;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
      if (i < n) total += *cooperative_groups::this_cluster().map_shared_rank(shared, i);
    return total;
  }
};

template <class Amount>
struct Threshold {
  uint32_t key;
  Amount left;  // of the wanted amount, behind all higher keys; above 0
};

// The key at which the amounts of the keys, added up from the highest down, reach `wanted`: within
// 1 and the amount of all. This block looks at [first, end) of the keys.
template <int kBlocks = 1, class Amount, class Key, class AmountOf>
__device__ Threshold<Amount> find_threshold(Key key, AmountOf amount, int first, int end,
                                            Amount wanted, TopScratch<Amount>& scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t prefix = 0, decided = 0;  // bits of the key
  for (int shift = 21; decided != ~0u; shift = shift == 21 ? 10 : 0) {
    scratch.histogram[2 * thread] = scratch.histogram[2 * thread + 1] = 0;
    __syncthreads();
    const uint32_t digit = ~decided >> shift;
    for (int begin = first + thread; begin < end; begin += kTopBatch * kTopThreads) {
      uint32_t keys[kTopBatch];
#pragma unroll
      for (int b = 0; b < kTopBatch; ++b) {
        const int i = begin + b * kTopThreads;
        keys[b] = i < end ? key(i) : 0;
      }
#pragma unroll
      for (int b = 0; b < kTopBatch; ++b) {
        const int i = begin + b * kTopThreads;
        if (i < end && (keys[b] & decided) == prefix)
          atomicAdd(&scratch.histogram[keys[b] >> shift & digit], amount(i));
      }
    }
    Team<kBlocks>::sync();
    // The digit at which the amount is reached: thread t looks at two, from the highest down.
    const uint32_t bin = kTopBins - 1 - 2 * static_cast<uint32_t>(thread);
    const Amount high = Team<kBlocks>::sum(&scratch.histogram[bin]),
                 low = Team<kBlocks>::sum(&scratch.histogram[bin - 1]);
    Amount total;
    const Amount above = block_exclusive_sum(high + low, scratch.parts, total);
    if (above < wanted && wanted <= above + high + low) {
      const bool is_high = wanted <= above + high;
      scratch.key = prefix | (is_high ? bin : bin - 1) << shift;
      scratch.left = wanted - above - (is_high ? 0 : high);
    }
    decided = ~0u << shift;
    Team<kBlocks>::sync();  // the histograms are read
    prefix = scratch.key;
    wanted = scratch.left;
  }
  return {prefix, wanted};
}

// Writes the positions of the `count` highest keys, ascending, ties to the lower one. key(i) is
// read five times.
template <int kBlocks = 1, class Key>
__device__ void write_top(Key key, int n, int count, int32_t* out, TopScratch<uint32_t>& scratch) {
  if (count <= 0) return;
  const int thread = static_cast<int>(threadIdx.x), rank = Team<kBlocks>::rank();
  const int share = (n + kBlocks - 1) / kBlocks, from = min(n, rank * share);
  const int to = min(n, from + share);
  if (count >= n) {
    for (int i = from + thread; i < to; i += kTopThreads) out[i] = i;
    return;
  }
  const auto one = [](int) { return 1u; };
  const Threshold<uint32_t> least =
      find_threshold<kBlocks>(key, one, from, to, static_cast<uint32_t>(count), scratch);
  // Every warp takes a run of positions, twice: to count, and, once it knows what comes before, to
  // write.
  const int lane = thread % 32, run = (share + kTopThreads - 1) / kTopThreads * 32;
  const int begin = from + thread / 32 * run, end = min(begin + run, to);
  uint32_t n_above = 0, n_equal = 0;
#pragma unroll 4
  for (int i = begin + lane; i < end; i += 32) {
    const uint32_t k = key(i);
    n_above += k > least.key;
    n_equal += k == least.key;
  }
  n_above = warp_reduce(n_above, Sum{});
  n_equal = warp_reduce(n_equal, Sum{});
  const auto before = [&](uint32_t of_warp, uint32_t& total) {
    const uint32_t sum = block_exclusive_sum(lane == 0 ? of_warp : 0u, scratch.parts, total);
    return __shfl_sync(kFullWarp, sum, 0);
  };
  uint32_t totals[2];
  uint32_t equals = before(n_equal, totals[0]), at = before(n_above, totals[1]);
  if constexpr (kBlocks > 1) {
    if (thread == 0) {
      scratch.histogram[0] = totals[0];
      scratch.histogram[1] = totals[1];
    }
    Team<kBlocks>::sync();
    equals += Team<kBlocks>::sum(&scratch.histogram[0], rank);
    at += Team<kBlocks>::sum(&scratch.histogram[1], rank);
    Team<kBlocks>::sync();  // no block ends before they are read
  }
  at += min(equals, least.left);
  const uint32_t lower_lanes = (1u << lane) - 1;
#pragma unroll 4
  for (int first = begin; first < end; first += 32) {
    const int i = first + lane;
    const uint32_t k = i < end ? key(i) : 0;
    const bool equal = i < end && k == least.key;
    const uint32_t equal_lanes = __ballot_sync(kFullWarp, equal);
    const uint32_t rank = equals + __popc(equal_lanes & lower_lanes);
    const bool taken = i < end && (k > least.key || (equal && rank < least.left));
    const uint32_t taken_lanes = __ballot_sync(kFullWarp, taken);
    if (taken) out[at + __popc(taken_lanes & lower_lanes)] = i;
    equals += __popc(equal_lanes);
    at += __popc(taken_lanes);
  }
}

}  // namespace ei::cuda
