#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/top.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

struct MaxWord {
  __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const {
    return a > b ? a : b;
  }
};

// A block per row.
template <class T>
__global__ void __launch_bounds__(kTopThreads, 1)
    token_scores(const T* all_logits, int64_t n, const int32_t* targets, float* logprob,
                 int32_t* argmax) {
  __shared__ unsigned long long words[32];
  __shared__ float parts[32];
  const T* logits = all_logits + blockIdx.x * n;
  // The highest value above, the lowest id below.
  unsigned long long best = 0;
  for (int64_t i = threadIdx.x; i < n; i += kTopThreads) {
    const auto key = static_cast<unsigned long long>(ordered(to_float(logits[i])));
    best = MaxWord{}(best, key << 32 | (~static_cast<uint32_t>(i)));
  }
  best = block_reduce(best, MaxWord{}, words);
  const auto id = static_cast<int32_t>(~static_cast<uint32_t>(best));
  const float top = to_float(logits[id]);
  float sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kTopThreads) sum += expf(to_float(logits[i]) - top);
  sum = block_reduce(sum, Sum{}, parts);
  if (threadIdx.x != 0) return;
  logprob[blockIdx.x] = to_float(logits[targets[blockIdx.x]]) - top - logf(sum);
  argmax[blockIdx.x] = id;
}

}  // namespace

void CudaBackend::run(const TokenScores& op) {
  check(op);
  const auto n_rows = static_cast<unsigned>(op.logits.rows);
  if (op.logits.elem_bytes == 4) {
    launch("TokenScores", token_scores<float>, n_rows, kTopThreads, 0, stream_,
           static_cast<const float*>(op.logits.data), op.logits.cols, op.targets.data,
           op.logprob.data, op.argmax.data);
  } else {
    launch("TokenScores", token_scores<bf16>, n_rows, kTopThreads, 0, stream_,
           static_cast<const bf16*>(op.logits.data), op.logits.cols, op.targets.data,
           op.logprob.data, op.argmax.data);
  }
}

}  // namespace ei::cuda
