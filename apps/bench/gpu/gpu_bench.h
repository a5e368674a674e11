#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "ei/cuda/cuda_backend.h"
#include "ei/model/model.h"
#include "ei/prefill/sketch.h"

// What the sources of this library share.
namespace ei::bench {

inline double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

struct Bench {
  explicit Bench(Math math, DType kv_type = DType::kBF16,
                 std::shared_ptr<Communicator> ranks = nullptr)
      : backend(math, std::move(ranks)), kv_type(kv_type) {}

  cuda::CudaBackend backend;
  DType kv_type;
  std::unique_ptr<Model> model;
  std::optional<Sketch> sketch;  // the model's

  PageLayout layout(int64_t head_dim, int64_t block = 0) const {
    return {.dtype = kv_type, .head_dim = head_dim, .block = block};
  }
  void wait() { EI_CUDA(cudaStreamSynchronize(backend.stream())); }
};

// Between two events of the stream.
class Stopwatch {
 public:
  explicit Stopwatch(cudaStream_t stream) : stream_(stream) {
    EI_CUDA(cudaEventCreate(&begin_));
    EI_CUDA(cudaEventCreate(&end_));
  }
  ~Stopwatch() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  void start() { EI_CUDA(cudaEventRecord(begin_, stream_)); }
  void stop() { EI_CUDA(cudaEventRecord(end_, stream_)); }
  double ms() {
    float ms = 0;
    EI_CUDA(cudaEventSynchronize(end_));
    EI_CUDA(cudaEventElapsedTime(&ms, begin_, end_));
    return ms;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_{}, end_{};
};

// 0, or 1 and what it threw is what ei_error() says.
int guarded(const std::function<void()>& work);

inline Act act_of(const void* data, int64_t rows, int64_t cols) {
  return {const_cast<void*>(data), rows, cols, 2};
}

}  // namespace ei::bench
