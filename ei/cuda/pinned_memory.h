#pragma once

#include <cuda_runtime_api.h>

#include "ei/cuda/stream.h"
#include "ei/ops/host_memory.h"

namespace ei::cuda {

// Page-locked memory of the host, and the stream that copies run on, beside the ops' stream.
class PinnedMemory final : public HostMemory {
 public:
  // `ops` outlives it.
  explicit PinnedMemory(Stream& ops) : ops_(ops) {}
  ~PinnedMemory() override;
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  int64_t available_bytes() const override;
  void* allocate(int64_t bytes) override;
  void release(void* data, int64_t bytes) noexcept override;
  void copy(std::span<void* const> to, std::span<const void* const> from, int64_t bytes) override;
  bool copied() override;
  void await() override;

 private:
  void start();  // what only those need who copy

  Stream& ops_;
  cudaStream_t copies_ = nullptr;
  cudaEvent_t given_ = nullptr;  // all ops before a copy
  cudaEvent_t done_ = nullptr;   // the last copy
};

}  // namespace ei::cuda
