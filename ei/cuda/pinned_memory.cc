#include "ei/cuda/pinned_memory.h"

#include <vector>

#include "ei/base/available_memory.h"
#include "ei/base/fail.h"
#include "ei/cuda/error.h"

namespace ei::cuda {

PinnedMemory::~PinnedMemory() {
  if (done_ != nullptr) cudaEventDestroy(done_);
  if (given_ != nullptr) cudaEventDestroy(given_);
  if (copies_ != nullptr) cudaStreamDestroy(copies_);
}

int64_t PinnedMemory::available_bytes() const { return available_memory(); }

void* PinnedMemory::allocate(int64_t bytes) {
  void* data = nullptr;
  ops_.use_device();
  const cudaError_t code = cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocDefault);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail("no host memory for {} bytes that a GPU copies from: {} are available; use less", bytes,
         available_bytes());
  }
  check_cuda(code, "cudaHostAlloc");
  return data;
}

void PinnedMemory::release(void* data, int64_t) noexcept {
  if (copies_ != nullptr) cudaStreamSynchronize(copies_);
  cudaFreeHost(data);
}

void PinnedMemory::start() {
  if (copies_ == nullptr) EI_CUDA(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking));
  if (given_ == nullptr) EI_CUDA(cudaEventCreateWithFlags(&given_, cudaEventDisableTiming));
  if (done_ == nullptr) EI_CUDA(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming));
}

void PinnedMemory::copy(std::span<void* const> to, std::span<const void* const> from,
                        int64_t bytes) {
  cudaStream_t ops = ops_.get();
  start();
  EI_CUDA(cudaEventRecord(given_, ops));
  EI_CUDA(cudaStreamWaitEvent(copies_, given_));
  const auto size = static_cast<size_t>(bytes);
  cudaError_t code = cudaSuccess;
  for (size_t i = 0; i < to.size() && code == cudaSuccess; ++i)
    code = cudaMemcpyAsync(to[i], from[i], size, cudaMemcpyDefault, copies_);
  if (code == cudaSuccess) code = cudaEventRecord(done_, copies_);
  if (code != cudaSuccess) cudaStreamSynchronize(copies_);
  check_cuda(code, "copies between GPU and host");
}

bool PinnedMemory::copied() {
  if (done_ == nullptr) return true;
  const cudaError_t code = cudaEventQuery(done_);
  if (code == cudaErrorNotReady) return false;
  check_cuda(code, "copies between GPU and host");
  return true;
}

void PinnedMemory::await() {
  if (done_ != nullptr) EI_CUDA(cudaStreamWaitEvent(ops_.get(), done_));
}

}  // namespace ei::cuda
