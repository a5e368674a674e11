#include "ei/cuda/memory.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "ei/base/fail.h"
#include "ei/cuda/error.h"

namespace ei::cuda {
namespace {

constexpr int64_t kChunkBytes = int64_t{4} << 20;
constexpr int64_t kLargeBytes = int64_t{1} << 20;  // from here on, a piece has memory of its own
constexpr size_t kProbeBytes = size_t{1} << 30;
constexpr size_t kMaxStrays = 256;
constexpr int64_t kLargeUnit = int64_t{2} << 20;

int64_t rounded(int64_t bytes) {
  const auto up_to = [&](int64_t unit) {
    return (std::max<int64_t>(1, bytes) + unit - 1) / unit * unit;
  };
  const int64_t size = up_to(Memory::kAlignment);
  // cudaMalloc aligns whole units of its own; smaller ones it packs.
  return size < kLargeBytes ? size : up_to(kLargeUnit);
}

}  // namespace

Memory::~Memory() {
  cudaSetDevice(device_);
  for (void* chunk : chunks_) cudaFree(chunk);
  for (const auto& [data, size] : large_) cudaFree(data);
  for (void* stray : strays_) cudaFree(stray);
}

int64_t Memory::available_bytes() const {
  size_t n_free = 0, n_total = 0;
  EI_CUDA(cudaSetDevice(device_));
  EI_CUDA(cudaMemGetInfo(&n_free, &n_total));
  return static_cast<int64_t>(n_free) + unused_bytes_;
}

void Memory::free_unused() {
  EI_CUDA(cudaDeviceSynchronize());
  for (auto& [size, list] : unused_) {
    if (size < kLargeBytes) continue;
    for (void* data : list) {
      cudaFree(data);
      large_.erase(data);
      unused_bytes_ -= size;
    }
    list.clear();
  }
  lowest_ = UINT64_MAX, highest_ = 0;
  for (void* chunk : chunks_) include(chunk, kChunkBytes);
  for (const auto& [data, size] : large_) include(data, size);
}

void Memory::include(const void* data, int64_t size) {
  const auto address = reinterpret_cast<uint64_t>(data);
  lowest_ = std::min(lowest_, address);
  highest_ = std::max(highest_, address + static_cast<uint64_t>(size));
}

// Where large pieces go, there is room for all.
bool Memory::is_within_reach(const void* data) {
  if (middle_ == 0) {
    void* large = nullptr;
    const bool is_there = cudaMalloc(&large, kProbeBytes) == cudaSuccess;
    if (is_there) cudaFree(large);
    cudaGetLastError();
    middle_ = reinterpret_cast<uint64_t>(is_there ? large : data);
  }
  const auto address = reinterpret_cast<uint64_t>(data);
  return std::max(address, middle_) - std::min(address, middle_) < kReach ||
         strays_.size() >= kMaxStrays;
}

void* Memory::allocate_new(int64_t size) {
  void* data = nullptr;
  EI_CUDA(cudaSetDevice(device_));
  cudaError_t code = cudaMalloc(&data, static_cast<size_t>(size));
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    free_unused();
    code = cudaMalloc(&data, static_cast<size_t>(size));
  }
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(
        "no GPU memory for {} bytes: {} are available; use a shorter context, fewer sequences or a "
        "smaller model",
        size, available_bytes());
  }
  check_cuda(code, "cudaMalloc");
  if (!is_within_reach(data)) {
    strays_.push_back(data);
    return allocate_new(size);
  }
  require(reinterpret_cast<uint64_t>(data) % kAlignment == 0,
          "GPU memory: an address is not aligned to {} bytes", kAlignment);
  include(data, size);
  return data;
}

void* Memory::allocate(int64_t bytes) {
  const int64_t size = rounded(bytes);
  if (const auto it = unused_.find(size); it != unused_.end() && !it->second.empty()) {
    void* data = it->second.back();
    it->second.pop_back();
    unused_bytes_ -= size;
    return data;
  }
  if (size < kLargeBytes) {
    if (chunk_bytes_ < size) {
      chunk_ = static_cast<char*>(allocate_new(kChunkBytes));
      chunk_bytes_ = kChunkBytes;
      chunks_.push_back(chunk_);
    }
    void* data = chunk_;
    chunk_ += size;
    chunk_bytes_ -= size;
    return data;
  }
  void* data = allocate_new(size);
  large_.emplace(data, size);
  return data;
}

void Memory::release(void* data, int64_t bytes) noexcept {
  const int64_t size = rounded(bytes);
  unused_[size].push_back(data);
  unused_bytes_ += size;
}

}  // namespace ei::cuda
