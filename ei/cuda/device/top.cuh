#pragma once

#include <cstdint>

#include "ei/cuda/device/reduce.cuh"

// The highest of n keys, by one thread block of kTopThreads that all call in step: a radix select,
// 11 bits at a time from the top.
namespace ei::cuda {

inline constexpr int kTopThreads = 1024;
inline constexpr int kTopBins = 2048;

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
    for (int i = thread; i < n; i += kTopThreads) {
      const uint32_t k = key(i);
      if ((k & decided) == prefix) atomicAdd(&scratch.histogram[k >> shift & digit], amount(i));
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
// read four times.
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
  uint32_t written = 0, equals = 0;  // before this round
  for (int begin = 0; begin < n; begin += kTopThreads) {
    const int i = begin + thread;
    const uint32_t k = i < n ? key(i) : 0;
    const bool equal = i < n && k == least.key;
    uint32_t n_equal, n_taken;
    const uint32_t rank = equals + block_exclusive_sum(equal ? 1u : 0u, scratch.parts, n_equal);
    const bool taken = i < n && (k > least.key || (equal && rank < least.left));
    const uint32_t at = written + block_exclusive_sum(taken ? 1u : 0u, scratch.parts, n_taken);
    if (taken) out[at] = i;
    equals += n_equal;
    written += n_taken;
  }
}

}  // namespace ei::cuda
