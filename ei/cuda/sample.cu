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

constexpr uint32_t kInPrompt = 1u << 31;  // beside a token's number in the answer

struct Params {
  struct Row {
    SamplingParams params;
    int64_t logits_row, step, n_prompt, n_biases;
    const LogitBias* biases;
    const uint32_t* allowed;  // or null: all
    int32_t* history;         // or null
    bool has_penalties;
  };
  Row rows[kMaxSequences];
  const void* logits;
  bool is_float;
  int64_t cols;
  int n_tokens;
  float* weights;    // [n, n_tokens] first logits, then e^((logit - highest) / temperature) or 0
  uint32_t* counts;  // [n, n_tokens], or null if there are no penalties
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

// The highest value above, the lowest id below.
__device__ inline Mass rank(float x, int id) {
  return Mass{ordered(x)} << 32 | (~static_cast<uint32_t>(id));
}

// Adds biases to the logits, applies penalties and bans what is not allowed; returns the highest
// rank among the thread's own.
__device__ inline Mass change(float* logits, int n, const Params::Row& row, uint32_t* counts) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto known = [&](int32_t id) { return static_cast<uint32_t>(id) < n; };
  for (int64_t i = thread; i < row.n_biases; i += kTopThreads)
    if (known(row.biases[i].token)) atomicAdd(&logits[row.biases[i].token], row.biases[i].bias);
  if (counts != nullptr) {
    for (int i = thread; i < n; i += kTopThreads) counts[i] = 0;
    __syncthreads();
    for (int64_t i = thread; i < row.n_prompt + row.step; i += kTopThreads) {
      const int32_t id = row.history[i];
      if (!known(id)) continue;
      if (i < row.n_prompt) {
        atomicOr(&counts[id], kInPrompt);
      } else {
        atomicAdd(&counts[id], 1);
      }
    }
  }
  __syncthreads();
  Mass best = 0;
  for (int i = thread; i < n; i += kTopThreads) {
    if (counts != nullptr && counts[i] != 0) {
      const auto n_drawn = static_cast<int32_t>(counts[i] & ~kInPrompt);
      logits[i] = penalized(logits[i], row.params, n_drawn);
    }
    if (row.allowed != nullptr && (row.allowed[i / 32] >> i % 32 & 1) == 0) logits[i] = -INFINITY;
    best = MaxMass{}(best, rank(logits[i], i));
  }
  return best;
}

// A block per row.
__global__ void __launch_bounds__(kTopThreads, 1) sample(const __grid_constant__ Params p) {
  __shared__ Shared shared;
  const Params::Row& row = p.rows[blockIdx.x];
  const SamplingParams& params = row.params;
  const int n = p.n_tokens, thread = static_cast<int>(threadIdx.x);
  float* weights = p.weights + int64_t{blockIdx.x} * n;
  const auto put = [&](int32_t token) {  // by one thread
    p.token[blockIdx.x] = token;
    if (row.history != nullptr) row.history[row.n_prompt + row.step] = token;
  };

  const bool has_penalties = row.has_penalties && row.history != nullptr;
  const bool is_changed = has_penalties || row.n_biases > 0 || row.allowed != nullptr;
  const bool is_greedy = params.temperature == 0;
  bool is_finite = true;
  Mass best = 0;
  for (int i = thread; i < n; i += kTopThreads) {
    const int64_t at = row.logits_row * p.cols + i;
    const float x = p.is_float ? static_cast<const float*>(p.logits)[at]
                               : to_float(static_cast<const bf16*>(p.logits)[at]);
    is_finite = is_finite && fabsf(x) < INFINITY;
    best = MaxMass{}(best, rank(x, i));
    if (is_changed || !is_greedy) weights[i] = x;
  }
  if (!__syncthreads_and(is_finite)) {
    if (thread == 0) put(Sample::kNotFinite);
    return;
  }
  if (is_changed)
    best = change(weights, n, row, has_penalties ? p.counts + int64_t{blockIdx.x} * n : nullptr);
  best = block_reduce(best, MaxMass{}, shared.parts);
  const auto likeliest = static_cast<int32_t>(~static_cast<uint32_t>(best));
  if (is_greedy && !is_changed) {
    if (thread == 0) put(likeliest);
    return;
  }
  const float top = weights[likeliest];
  if (is_greedy || !(fabsf(top) < INFINITY)) {
    const int32_t none = top < 0 ? Sample::kNoneLeft : Sample::kNotFinite;
    if (thread == 0) put(fabsf(top) < INFINITY ? likeliest : none);
    return;
  }
  __syncthreads();
  for (int i = thread; i < n; i += kTopThreads)
    weights[i] = expf((weights[i] - top) / params.temperature);
  __syncthreads();

  // Weights are positive: their bits are ordered as they are.
  const auto key = [&](int i) { return __float_as_uint(weights[i]); };
  if (params.top_k > 0 && params.top_k < n) {
    const auto least = find_threshold(
        key, [](int) { return 1u; }, 0, n, static_cast<uint32_t>(params.top_k), shared.counts);
    drop_below(weights, n, least.key, least.left, shared);
  }
  if (params.top_p < 1) {
    const Mass total = total_mass(weights, n, shared);
    const auto wanted = static_cast<Mass>(ceil(params.top_p * static_cast<double>(total)));
    const auto least = find_threshold(
        key, [&](int i) { return mass(weights[i]); }, 0, n, wanted == 0 ? 1 : wanted,
        shared.masses);
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
  const auto wanted =
      static_cast<Mass>(static_cast<double>(uniform(params.seed, static_cast<uint64_t>(row.step))) *
                        static_cast<double>(total));
  if (before <= wanted && wanted < before + own) {
    for (int i = range.begin; i < range.end; ++i) {
      before += mass(weights[i]);
      if (wanted < before) {
        put(i);
        break;
      }
    }
  }
}

}  // namespace

void CudaBackend::run(const Sample& op) {
  check(op);
  for (size_t s = 0; s < op.rows.size(); s += kMaxSequences) {
    const auto rows = op.rows.subspan(s, std::min(kMaxSequences, op.rows.size() - s));
    const auto n = static_cast<int64_t>(rows.size());
    Params p{};
    bool has_penalties = false;
    for (size_t i = 0; i < rows.size(); ++i) {
      const Sample::Row& row = rows[i];
      p.rows[i] = {.params = row.params,
                   .logits_row = row.logits_row,
                   .step = row.step,
                   .n_prompt = row.n_prompt,
                   .n_biases = row.biases.size(),
                   .biases = row.biases.data,
                   .allowed = row.allowed.size() > 0 ? row.allowed.data : nullptr,
                   .history = row.history.size() > 0 ? row.history.data : nullptr,
                   .has_penalties = row.params.has_penalties()};
      has_penalties = has_penalties || p.rows[i].has_penalties;
    }
    p.logits = op.logits.data;
    p.is_float = op.logits.elem_bytes == 4;
    p.cols = op.logits.cols;
    p.n_tokens = static_cast<int>(op.n_tokens);
    const int64_t n_values = n * op.n_tokens;
    p.weights =
        static_cast<float*>(scratch((has_penalties ? 2 : 1) * n_values * int64_t{sizeof(float)}));
    if (has_penalties) p.counts = reinterpret_cast<uint32_t*>(p.weights + n_values);
    p.token = op.token.data + s;
    launch("Sample", sample, static_cast<unsigned>(n), kTopThreads, 0, stream_, p);
  }
}

}  // namespace ei::cuda
