#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <map>
#include <tuple>

#include "ei/cuda/error.h"
#include "ei/cuda/memory.h"
#include "ei/cuda/stream.h"
#include "ei/ops/backend.h"

namespace ei::cuda {

// Every op on one stream of one GPU. Activations and weights are bf16, sums float; logits may be
// float (Act::elem_bytes says). Each run() is in the .cu named after its op.
class CudaBackend final : public Backend {
 public:
  CudaBackend();
  ~CudaBackend() override;

  cudaStream_t stream() { return stream_.get(); }
  // Whether repeat() starts its ops as one graph. For measurements; it does.
  void use_graphs(bool use) { use_graphs_ = use; }

  std::string name() const override { return name_; }
  int64_t act_bytes() const override { return 2; }
  int64_t prompt_rows() const override { return 8192; }
  int64_t available_bytes() const override { return memory_.available_bytes(); }
  void* allocate(int64_t bytes) override { return memory_.allocate(bytes); }
  void release(void* data, int64_t bytes) noexcept override { memory_.release(data, bytes); }
  // Pages are smaller than the memory the GPU can unmap: they are reused, not given back.
  void discard(void*, int64_t) noexcept override {}
  void copy_in(void* device, const void* host, int64_t bytes) override;
  void copy_out(void* host, const void* device, int64_t bytes) override;
  Weight place(const Weight& host) override;

  void repeat(const std::function<void()>& ops) override;

  EI_OPS(EI_OVERRIDE_RUN)

 private:
  // Memory for one op's intermediate results; the next op of the stream may overwrite it.
  void* scratch(int64_t bytes);
  // Zeroed once; a kernel that counts with them leaves them zero.
  uint32_t* counters() const { return counters_; }
  void attend_hopper(const SparseAttention& op);
  void multiply(const Act& x, const MatMul::Part& part);
  // By cuBLASLt; its bias is of the type of the output.
  void multiply(const Act& x, const MatMul::Part& part, const void* bias, cudaStream_t stream);

  std::string name_;
  int n_sms_ = 0;
  Memory memory_;
  Stream stream_;
  bool use_graphs_ = true;
  cublasLtHandle_t cublas_ = nullptr;
  void* workspace_ = nullptr;  // cuBLASLt's
  void* scratch_ = nullptr;
  int64_t scratch_bytes_ = 0;
  uint32_t* counters_ = nullptr;
  std::map<std::tuple<int64_t, int64_t, int64_t, int>, cublasLtMatmulAlgo_t> algorithms_;
};

inline constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what NVIDIA recommends for Hopper
inline constexpr int64_t kCounters = 16384;

}  // namespace ei::cuda
