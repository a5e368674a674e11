#include <algorithm>

#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/top.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

// Probabilities are added up as integers, so that no order of additions changes a draw.
using Mass = unsigned long long;
constexpr float kUnit = 0x1p40f;  // of the likeliest token; a vocabulary's sum stays below 2^64

struct Params {
  struct Row {
    SamplingParams params;
    uint64_t step;
    const int32_t* history;
    int64_t n_history;
  };
  Row rows[kMaxSequences];
  const void* logits;
  bool is_float;
  int64_t cols;
  int n_tokens;
  float* weights;  // [n, n_tokens] first logits, then e^((logit - highest) / temperature) or 0
  uint32_t* seen;  // [n, n_seen] bits
  int n_seen;
  int32_t* token;
};

struct Shared {
  union {
    TopScratch<uint32_t> counts;
    TopScratch<Mass> masses;
  };
  Mass parts[32];
  int32_t token;
};

struct MaxMass {
  __device__ Mass operator()(Mass a, Mass b) const { return a > b ? a : b; }
};

__device__ inline Mass mass(float weight) { return static_cast<Mass>(weight * kUnit); }

// The ids a thread owns when their order matters: as many in a row for each.
struct Range {
  int begin, end;

  __device__ explicit Range(int n) {
    const int each = (n + kTopThreads - 1) / kTopThreads;
    begin = min(n, static_cast<int>(threadIdx.x) * each);
    end = min(n, begin + each);
  }
};

// Drops what is below the threshold; of its equals the first `n_equal` stay.
__device__ inline void drop_below(float* weights, int n, uint32_t key, Mass n_equal,
                                  Shared& shared) {
  const Range range(n);
  Mass equals = 0, total;
  for (int i = range.begin; i < range.end; ++i) equals += __float_as_uint(weights[i]) == key;
  equals = block_exclusive_sum(equals, shared.parts, total);
  for (int i = range.begin; i < range.end; ++i) {
    const uint32_t k = __float_as_uint(weights[i]);
    if (k < key || (k == key && equals++ >= n_equal)) weights[i] = 0;
  }
  __syncthreads();
}

__device__ inline Mass total_mass(const float* weights, int n, Shared& shared) {
  Mass sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kTopThreads) sum += mass(weights[i]);
  return block_reduce(sum, Sum{}, shared.parts);
}

// A block per row.
__global__ void __launch_bounds__(kTopThreads, 1) sample(const __grid_constant__ Params p) {
  __shared__ Shared shared;
  const Params::Row& row = p.rows[blockIdx.x];
  const SamplingParams& params = row.params;
  const int n = p.n_tokens, thread = static_cast<int>(threadIdx.x);
  float* weights = p.weights + int64_t{blockIdx.x} * n;

  for (int i = thread; i < n; i += kTopThreads) {
    const int64_t at = blockIdx.x * p.cols + i;
    weights[i] = p.is_float ? static_cast<const float*>(p.logits)[at]
                            : to_float(static_cast<const bf16*>(p.logits)[at]);
  }
  if (params.repetition_penalty != 1) {
    uint32_t* seen = p.seen + int64_t{blockIdx.x} * p.n_seen;
    for (int i = thread; i < p.n_seen; i += kTopThreads) seen[i] = 0;
    __syncthreads();
    for (int64_t i = thread; i < row.n_history; i += kTopThreads) {
      const int32_t id = row.history[i];
      if (id >= n) continue;
      const uint32_t bit = 1u << (id % 32);
      if ((atomicOr(&seen[id / 32], bit) & bit) != 0) continue;  // every id once
      const float x = weights[id];
      weights[id] = x > 0 ? x / params.repetition_penalty : x * params.repetition_penalty;
    }
  }
  __syncthreads();

  // The highest value above, the lowest id below.
  Mass best = 0;
  for (int i = thread; i < n; i += kTopThreads)
    best = MaxMass{}(best, Mass{ordered(weights[i])} << 32 | (~static_cast<uint32_t>(i)));
  best = block_reduce(best, MaxMass{}, shared.parts);
  const auto likeliest = static_cast<int32_t>(~static_cast<uint32_t>(best));
  if (params.temperature == 0) {
    if (thread == 0) p.token[blockIdx.x] = likeliest;
    return;
  }
  const float top = weights[likeliest];
  __syncthreads();
  for (int i = thread; i < n; i += kTopThreads)
    weights[i] = expf((weights[i] - top) / params.temperature);
  __syncthreads();

  // Weights are positive: their bits are ordered as they are.
  const auto key = [&](int i) { return __float_as_uint(weights[i]); };
  if (params.top_k > 0 && params.top_k < n) {
    const auto least = find_threshold(
        key, [](int) { return 1u; }, n, static_cast<uint32_t>(params.top_k), shared.counts);
    drop_below(weights, n, least.key, least.left, shared);
  }
  if (params.top_p < 1) {
    const Mass total = total_mass(weights, n, shared);
    const auto wanted = static_cast<Mass>(ceil(params.top_p * static_cast<double>(total)));
    const auto least = find_threshold(
        key, [&](int i) { return mass(weights[i]); }, n, wanted == 0 ? 1 : wanted, shared.masses);
    const Mass each = mass(__uint_as_float(least.key));
    drop_below(weights, n, least.key, (least.left + each - 1) / each, shared);
  }
  if (params.min_p > 0) {  // the likeliest weighs 1
    for (int i = thread; i < n; i += kTopThreads)
      if (weights[i] < params.min_p) weights[i] = 0;
    __syncthreads();
  }

  // The first id behind which a random share of all lies.
  const Range range(n);
  Mass own = 0, total;
  for (int i = range.begin; i < range.end; ++i) own += mass(weights[i]);
  Mass before = block_exclusive_sum(own, shared.parts, total);
  const auto wanted = static_cast<Mass>(static_cast<double>(uniform(params.seed, row.step)) *
                                        static_cast<double>(total));
  if (before <= wanted && wanted < before + own) {
    for (int i = range.begin; i < range.end; ++i) {
      before += mass(weights[i]);
      if (wanted < before) {
        p.token[blockIdx.x] = i;
        break;
      }
    }
  }
}

}  // namespace

void CudaBackend::run(const Sample& op) {
  check(op);
  for (int64_t s = 0; s < op.logits.rows; s += int64_t{kMaxSequences}) {
    const int64_t n = std::min(int64_t{kMaxSequences}, op.logits.rows - s);
    Params p{};
    for (int64_t i = 0; i < n; ++i) {
      const Sample::Row& row = op.rows[static_cast<size_t>(s + i)];
      p.rows[i] = {row.params, row.step, row.history.data, row.history.dim(0)};
    }
    const Act logits = op.logits.slice(s, n);
    p.logits = logits.data;
    p.is_float = logits.elem_bytes == 4;
    p.cols = logits.cols;
    p.n_tokens = static_cast<int>(op.n_tokens);
    p.n_seen = p.n_tokens / 32 + 1;
    p.weights = static_cast<float*>(scratch(n * (op.n_tokens + p.n_seen) * int64_t{sizeof(float)}));
    p.seen = reinterpret_cast<uint32_t*>(p.weights + n * op.n_tokens);
    p.token = op.token.data + s;
    launch("Sample", sample, static_cast<unsigned>(n), kTopThreads, 0, stream_, p);
  }
}

}  // namespace ei::cuda
