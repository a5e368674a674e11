#include "ei/cuda/pinned_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <thread>
#include <vector>

#include "ei/base/available_memory.h"
#include "ei/base/fail.h"
#include "ei/cuda/error.h"

namespace ei::cuda {
namespace {

void touch(std::span<std::byte> memory) {
  constexpr size_t kThreads = 8, kPage = 4096;
  std::vector<std::jthread> threads;
  const size_t part = (memory.size() + kThreads - 1) / kThreads;
  for (size_t begin = 0; begin < memory.size(); begin += part)
    threads.emplace_back([of = memory.subspan(begin, std::min(part, memory.size() - begin))] {
      for (size_t i = 0; i < of.size(); i += kPage) of[i] = std::byte{};
    });
}

}  // namespace

PinnedMemory::~PinnedMemory() {
  if (done_ != nullptr) cudaEventDestroy(done_);
  if (given_ != nullptr) cudaEventDestroy(given_);
  if (copies_ != nullptr) cudaStreamDestroy(copies_);
}

int64_t PinnedMemory::available_bytes() const { return available_memory(); }

// Huge pages that several threads have touched are locked nine times as fast as what cudaHostAlloc
// makes: 2 GiB in 0.15 s.
void* PinnedMemory::allocate(int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  void* const data = bytes > available_bytes() ? MAP_FAILED
                                               : ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(data != MAP_FAILED,
          "no host memory for {} bytes that a GPU copies from: {} are available; use less", bytes,
          available_bytes());
  ::madvise(data, size, MADV_HUGEPAGE);
  try {
    touch({static_cast<std::byte*>(data), size});
    ops_.use_device();
    EI_CUDA(cudaHostRegister(data, size, cudaHostRegisterDefault));
  } catch (...) {
    ::munmap(data, size);
    throw;
  }
  return data;
}

void PinnedMemory::release(void* data, int64_t bytes) noexcept {
  if (copies_ != nullptr) cudaStreamSynchronize(copies_);
  cudaHostUnregister(data);
  ::munmap(data, static_cast<size_t>(bytes));
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
  // One call for all: as many of their own for pages of 0.3 MB are 36 GB/s, and this 55.
  const std::vector<size_t> sizes(to.size(), static_cast<size_t>(bytes));
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  size_t of_all = 0;
  cudaError_t code = cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), to.size(),
                                          &attributes, &of_all, 1, copies_);
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
