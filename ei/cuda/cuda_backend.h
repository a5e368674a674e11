#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <tuple>

#include "ei/base/communicator.h"
#include "ei/base/math.h"
#include "ei/cuda/error.h"
#include "ei/cuda/memory.h"
#include "ei/cuda/nccl.h"
#include "ei/cuda/pinned_memory.h"
#include "ei/cuda/shares.h"
#include "ei/cuda/stream.h"
#include "ei/ops/backend.h"

namespace ei::cuda {

// Every op on one stream of one GPU. Activations are bf16, weights bf16 or quantized, sums float;
// logits may be float (Act::elem_bytes says). Each run() is in the .cu named after its op.
class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(Math math = Math::kBF16, std::shared_ptr<Communicator> ranks = nullptr,
                       int device = -1);
  ~CudaBackend() override;

  cudaStream_t stream() { return stream_.get(); }
  void use_stream(cudaStream_t stream) { stream_.use(stream); }
  void use_own_stream() { stream_.use_own(); }
  // Whether repeat() starts its ops as one graph. For measurements; it does.
  void use_graphs(bool use) { use_graphs_ = use; }
  // Whether sums run beside products. For measurements; they do.
  void use_beside(bool use) { use_beside_ = use; }

  std::string name() const override { return name_; }
  int64_t act_bytes() const override { return 2; }
  int64_t prompt_rows() const override { return 8192; }
  int64_t available_bytes() const override { return memory_.available_bytes(); }
  int64_t attention_bytes(const PageLayout& layout, int64_t n_kv_heads, int64_t n) const override;
  Communicator& ranks() override { return *ranks_; }
  HostMemory* host_memory() override { return &host_memory_; }
  void* allocate(int64_t bytes) override { return memory_.allocate(bytes); }
  void release(void* data, int64_t bytes) noexcept override { memory_.release(data, bytes); }
  // Pages are smaller than the memory the GPU can unmap: they are reused, not given back.
  void discard(void*, int64_t) noexcept override {}
  void copy_in(void* device, const void* host, int64_t bytes) override;
  void copy_out(void* host, const void* device, int64_t bytes) override;
  Weight place(const Weight& host) override;
  Weight place_factor(const Weight& host) override;

  void repeat(const std::function<void()>& ops) override;

  EI_OPS(EI_OVERRIDE_RUN)

 private:
  // Memory that grows and is used again; the next op of the stream may overwrite it.
  struct Room {
    void* data = nullptr;
    int64_t bytes = 0;
  };
  void* reserve(Room& room, int64_t bytes);
  void* scratch(int64_t bytes) { return reserve(scratch_, bytes); }
  // Zeroed once; a kernel that counts with them leaves them zero.
  uint32_t* counters() const { return counters_; }
  void attend_hopper(const SparseAttention& op);
  void attend_e4m3(const SparseAttention& op);
  // The first n rows of every head of a cache in fp8, in bf16, until the next that are asked for.
  KvLayer widened(const KvLayer& kv, int64_t n_rows, bool with_values);
  void estimate_by_sketch(const EstimateMass& op, Segments segments);
  void estimate_by_logits(const EstimateMass& op, Segments segments);
  void multiply(const Act& x, const MatMul::Part& part);
  // Room for x in e4m3, its scales behind it.
  Act rounded_room(const Act& x);
  // x in e4m3, by the op before or by a pass of its own.
  Act rounded(const Act& x);
  void multiply_unpacked(const Act& x, const MatMul::Part& part);
  Weight place_e4m3(const Weight& host, bool by_block);
  // Rows of a weight of the host's, integers in tiles, or as bf16.
  void copy_in_tiles(const Weight& host, int64_t first, int64_t count, void* to);
  void copy_in_bf16(const Weight& host, int64_t first, int64_t count, void* to);
  // By cuBLASLt; its bias is of the type of the output. x is in e4m3 if the weight is, its scales
  // behind it.
  void multiply(const Act& x, const MatMul::Part& part, const void* bias, cudaStream_t stream);

  std::shared_ptr<Communicator> ranks_;
  std::unique_ptr<Nccl> nccl_;  // where there are several; outlives the stream's graphs
  int device_;
  std::string name_;
  int n_sms_ = 0;
  Memory memory_;
  Stream stream_;
  PinnedMemory host_memory_;
  bool use_graphs_ = true;
  bool use_beside_ = true;
  bool fp8_ = false;  // what place_factor() gives
  cublasLtHandle_t cublas_ = nullptr;
  void* workspace_ = nullptr;  // cuBLASLt's
  Room scratch_;
  Room rows_;     // x of a product, as it is multiplied: permuted, or in e4m3
  Room widened_;  // a layer of a cache
  Room panel_;    // of a quantized weight, in bf16
  // What RmsNorm and SwiGlu leave of their output in rows_, for a product that comes next.
  struct Rounded {
    const void* of = nullptr;
    Act rows;
    uint64_t n_calls = 0;
  } rounded_;
  uint32_t* counters_ = nullptr;
  std::map<std::tuple<int64_t, int64_t, int64_t, int>, cublasLtMatmulAlgo_t> algorithms_;
};

inline Stream::Memory memory_of(const Act& x) {
  return {static_cast<const std::byte*>(x.data),
          static_cast<size_t>(x.rows * x.cols * x.elem_bytes)};
}

// Of a sum that runs beside products: it takes long enough to be worth another stream.
inline constexpr int64_t kBesideRows = 1024;
inline constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what NVIDIA recommends for Hopper
// All of a matrix of 4,096 by 14,336, so that its product is one.
inline constexpr int64_t kPanelBytes = int64_t{128} << 20;
inline constexpr int64_t kCounters = 16384;

}  // namespace ei::cuda
