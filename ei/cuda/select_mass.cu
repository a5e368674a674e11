#include <algorithm>

#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostShared = 16384;  // blocks whose shares shared memory holds

// Of some blocks the sum of their shares and of these squared, and how many they are; of the others
// the squares by themselves: what is left of a difference may be nothing.
struct Held {
  float shares = 0, squares = 0, others = 0;
  int n = 0;

  __device__ void add(const Held& x) {
    shares += x.shares;
    squares += x.squares;
    others += x.others;
    n += x.n;
  }
};

// Of all threads, in all of them. `scratch` holds one for each warp; calls in turn use two of them,
// so that one barrier is enough.
__device__ inline Held block_sum(Held held, Held* scratch) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    held.add({__shfl_xor_sync(kFullWarp, held.shares, step),
              __shfl_xor_sync(kFullWarp, held.squares, step),
              __shfl_xor_sync(kFullWarp, held.others, step),
              __shfl_xor_sync(kFullWarp, held.n, step)});
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = held;
  __syncthreads();
  held = scratch[0];
#pragma unroll
  for (int w = 1; w < kThreads / 32; ++w) held.add(scratch[w]);
  return held;
}

// A block of threads for a segment and KV head: blockIdx. What is taken beside the blocks that are
// always kept are those of the highest shares, down to the one with which they are enough. Its
// bits, whose order is that of shares, are found one by one from the top.
__global__ void __launch_bounds__(kThreads, 4) select(const __grid_constant__ SelectMass op) {
  extern __shared__ float copy[];
  __shared__ Held sums[2][kThreads / 32];
  __shared__ float tops[32];
  __shared__ int counts[32];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int64_t i = blockIdx.x, h = blockIdx.y, s = op.first_segment + i;
  int32_t* count = op.out.count.data + h * op.out.count.dims[1] + i;
  if (s < op.dense_before || s >= op.dense_from) {
    if (thread == 0) *count = kAllBlocks;
    return;
  }
  const int past = static_cast<int>(s * op.segment / op.block);
  const auto blocks_of = [&](int64_t tokens) {
    return static_cast<int>(min(int64_t{past}, (tokens + op.block - 1) / op.block));
  };
  const int sink = blocks_of(op.sink), local = max(sink, past - blocks_of(op.local));
  const float own = op.own.data[h * op.own.dims[1] + i];
  const float* mass = op.mass.data + (h * op.mass.dims[1] + i) * op.mass.dims[2];
  if (past <= kMostShared) {
    for (int b = thread; b < past; b += kThreads) copy[b] = mass[b];
    mass = copy;
    __syncthreads();
  }
  const auto is_kept = [&](int b) { return b < sink || b >= local; };
  const auto key = [&](int b) { return __float_as_uint(mass[b] > 0 ? mass[b] : 0.0f); };

  int turn = 0;
  // Of the blocks in [begin, end) that are taken.
  const auto sum_of = [&](int begin, int end, auto is_taken) {
    Held held;
#pragma unroll 4
    for (int b = begin + thread; b < end; b += kThreads) {
      const float share = mass[b], square = share * share;
      held.add(is_taken(b) ? Held{share, square, 0, 1} : Held{0, 0, square, 0});
    }
    turn ^= 1;
    return block_sum(held, sums[turn]);
  };
  // Blocks are kept from the key `least` on: all with more, `n_equal` of those that have it.
  uint32_t least = 0;
  int n_equal = INT32_MAX;
  if (op.share > 0) {
    float most = 0;
    for (int b = thread; b < past; b += kThreads) most = fmaxf(most, mass[b]);
    most = block_reduce(most, Max{}, tops);
    least = __float_as_uint(op.share * most);
  } else if (op.total < 1) {
    const auto all = [](int) { return true; };
    Held always = sum_of(0, sink, all);
    always.add(sum_of(local, past, all));
    always.shares += own;
    always.squares += own * own * static_cast<float>(op.block) / static_cast<float>(op.segment);
    const double missing = 1 - static_cast<double>(op.total);
    const auto enough = [&](float shares, float squares, float others) {
      const double held = static_cast<double>(always.shares) + shares;
      if (!op.by_entropy) return held >= op.total;
      const double ratio = (1 - held) / held;
      return 16 * (others + ratio * ratio * (static_cast<double>(always.squares) + squares)) <=
             missing * missing;
    };
    const auto from = [&](uint32_t lowest) {
      return sum_of(sink, local, [&](int b) { return key(b) >= lowest; });
    };
    const auto are_enough = [&](const Held& held) {
      return enough(held.shares, held.squares, held.others);
    };
    least = UINT32_MAX;
    n_equal = 0;
    if (!are_enough(from(least))) {
      // The highest key from which on all blocks are enough, or 0 if there is none: until only one
      // block has a key within [least, least + 2 bit).
      least = 0;
      int n_from = max(0, local - sink), n_above = 0;
      uint32_t bit = 1u << 29;  // no share is 2 or more
      for (; bit != 0 && n_from - n_above > 1; bit /= 2) {
        const Held held = from(least | bit);
        if (are_enough(held)) {
          least |= bit;
          n_from = held.n;
        } else {
          n_above = held.n;
        }
      }
      if (bit != 0) {
        float most = 0;
        for (int b = sink + thread; b < local; b += kThreads)
          if (key(b) - least < 2 * bit) most = fmaxf(most, mass[b]);
        least = max(least, __float_as_uint(block_reduce(most, Max{}, tops)));
      }
      const Held above = sum_of(sink, local, [&](int b) { return key(b) > least; });
      const Held equal = sum_of(sink, local, [&](int b) { return key(b) == least; });
      const float share = __uint_as_float(least), square = share * share;
      n_equal = equal.n;
      for (int low = 0; low < n_equal;) {  // so many are enough if any are
        const int n = (low + n_equal) / 2;
        const auto taken = static_cast<float>(n);
        if (enough(above.shares + taken * share, above.squares + taken * square,
                   above.others - taken * square)) {
          n_equal = n;
        } else {
          low = n + 1;
        }
      }
    }
  }

  // Every warp writes a run of positions, once it knows how many come before.
  const int run = (past + kThreads - 1) / kThreads * 32;
  const int begin = min(past, thread / 32 * run), end = min(past, begin + run);
  int equals = 0;
  for (int b = begin + lane; b < end; b += 32) equals += !is_kept(b) && key(b) == least;
  int total;
  equals = block_exclusive_sum(equals, counts, total);
  equals = __shfl_sync(kFullWarp, equals, 0);  // of the warps before
  const uint32_t lower_lanes = (1u << lane) - 1;
  const auto for_taken = [&](auto write) {
    int n_equals = equals, n_taken = 0;
    for (int first = begin; first < end; first += 32) {
      const int b = first + lane;
      const bool equal = b < end && !is_kept(b) && key(b) == least;
      const uint32_t equal_lanes = __ballot_sync(kFullWarp, equal);
      const bool taken =
          b < end && (is_kept(b) || key(b) > least ||
                      (equal && n_equals + __popc(equal_lanes & lower_lanes) < n_equal));
      const uint32_t taken_lanes = __ballot_sync(kFullWarp, taken);
      if (taken) write(n_taken + __popc(taken_lanes & lower_lanes), b);
      n_equals += __popc(equal_lanes);
      n_taken += __popc(taken_lanes);
    }
    return n_taken;
  };
  const int n_taken = for_taken([](int, int) {});
  int at = block_exclusive_sum(lane == 0 ? n_taken : 0, counts, total);
  at = __shfl_sync(kFullWarp, at, 0);
  int32_t* index = op.out.index.data + (h * op.out.index.dims[1] + i) * op.out.index.dims[2];
  for_taken([&](int n, int b) { index[at + n] = b; });
  if (thread == 0) *count = total;
}

}  // namespace

void CudaBackend::run(const SelectMass& op) {
  check(op);
  const int64_t n = op.out.count.dim(1), last = op.first_segment + n - 1;
  const int64_t past =
      std::max<int64_t>(0, std::min(last, op.dense_from - 1)) * op.segment / op.block;
  const size_t shared = past <= kMostShared ? sizeof(float) * static_cast<size_t>(past) : 0;
  const dim3 grid(static_cast<unsigned>(n), static_cast<unsigned>(op.out.count.dim(0)));
  launch("SelectMass", select, grid, kThreads, shared, stream_, op);
}

}  // namespace ei::cuda
