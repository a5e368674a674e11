#pragma once

#include <cstdint>

#include "ei/cuda/device/reduce.cuh"

// The highest of n keys, by one thread block of kTopThreads that all call in step: a radix select,
// 11 bits at a time from the top.
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

template <class Amount>
struct Threshold {
  uint32_t key;
  Amount left;  // of the wanted amount, behind all higher keys; above 0
};

// The key at which the amounts of the keys, added up from the highest down, reach `wanted`: within
// 1 and the amount of all.
template <class Amount, class Key, class AmountOf>
__device__ Threshold<Amount> find_threshold(Key key, AmountOf amount, int n, Amount wanted,
                                            TopScratch<Amount>& scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t prefix = 0, decided = 0;  // bits of the key
  for (int shift = 21; decided != ~0u; shift = shift == 21 ? 10 : 0) {
    scratch.histogram[2 * thread] = scratch.histogram[2 * thread + 1] = 0;
    __syncthreads();
    const uint32_t digit = ~decided >> shift;
    for (int begin = thread; begin < n; begin += kTopBatch * kTopThreads) {
      uint32_t keys[kTopBatch];
#pragma unroll
      for (int b = 0; b < kTopBatch; ++b) {
        const int i = begin + b * kTopThreads;
        keys[b] = i < n ? key(i) : 0;
      }
#pragma unroll
      for (int b = 0; b < kTopBatch; ++b) {
        const int i = begin + b * kTopThreads;
        if (i < n && (keys[b] & decided) == prefix)
          atomicAdd(&scratch.histogram[keys[b] >> shift & digit], amount(i));
      }
    }
    __syncthreads();
    // The digit at which the amount is reached: thread t looks at two, from the highest down.
    const uint32_t bin = kTopBins - 1 - 2 * static_cast<uint32_t>(thread);
    const Amount high = scratch.histogram[bin], low = scratch.histogram[bin - 1];
    Amount total;
    const Amount above = block_exclusive_sum(high + low, scratch.parts, total);
    if (above < wanted && wanted <= above + high + low) {
      const bool is_high = wanted <= above + high;
      scratch.key = prefix | (is_high ? bin : bin - 1) << shift;
      scratch.left = wanted - above - (is_high ? 0 : high);
    }
    decided = ~0u << shift;
    __syncthreads();
    prefix = scratch.key;
    wanted = scratch.left;
  }
  return {prefix, wanted};
}

// Writes the positions of the `count` highest keys, ascending, ties to the lower one. key(i) is
// read five times.
template <class Key>
__device__ void write_top(Key key, int n, int count, int32_t* out, TopScratch<uint32_t>& scratch) {
  if (count <= 0) return;
  const int thread = static_cast<int>(threadIdx.x);
  if (count >= n) {
    for (int i = thread; i < n; i += kTopThreads) out[i] = i;
    return;
  }
  const auto one = [](int) { return 1u; };
  const Threshold<uint32_t> least =
      find_threshold(key, one, n, static_cast<uint32_t>(count), scratch);
  // Every warp takes a run of positions, twice: to count, and, once it knows what comes before, to
  // write.
  const int lane = thread % 32, run = (n + kTopThreads - 1) / kTopThreads * 32;
  const int begin = thread / 32 * run, end = min(begin + run, n);
  uint32_t n_above = 0, n_equal = 0, total;
#pragma unroll 4
  for (int i = begin + lane; i < end; i += 32) {
    const uint32_t k = key(i);
    n_above += k > least.key;
    n_equal += k == least.key;
  }
  n_above = warp_reduce(n_above, Sum{});
  n_equal = warp_reduce(n_equal, Sum{});
  const auto before = [&](uint32_t of_warp) {
    const uint32_t sum = block_exclusive_sum(lane == 0 ? of_warp : 0u, scratch.parts, total);
    return __shfl_sync(kFullWarp, sum, 0);
  };
  uint32_t equals = before(n_equal), at = before(n_above) + min(equals, least.left);
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
