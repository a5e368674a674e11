#pragma once

#include <span>
#include <utility>
#include <vector>

#include "ei/ops/backend.h"
#include "ei/ops/host_memory.h"

namespace ei {

// A piece of memory, owned: of a backend's device, or of HostMemory.
template <class Memory>
class OwnedMemory {
 public:
  OwnedMemory() = default;
  OwnedMemory(Memory& memory, int64_t bytes)
      : memory_(&memory), data_(bytes > 0 ? memory.allocate(bytes) : nullptr), bytes_(bytes) {}
  OwnedMemory(OwnedMemory&& other) noexcept
      : memory_(other.memory_),
        data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)) {}
  OwnedMemory& operator=(OwnedMemory&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~OwnedMemory() {
    if (data_ != nullptr) memory_->release(data_, bytes_);
  }

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  Memory* memory_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

using Buffer = OwnedMemory<Backend>;
using HostBuffer = OwnedMemory<HostMemory>;

// A Buffer of T with N dimensions.
template <class T, int N>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(Backend& backend, std::array<int64_t, N> dims)
      : dims_(dims), buffer_(backend, View<T, N>{nullptr, dims}.size() * int64_t{sizeof(T)}) {}
  // Holds a copy of host values.
  DeviceArray(Backend& backend, std::span<const T> values) requires(N == 1)
      : DeviceArray(backend, {static_cast<int64_t>(values.size())}) {
    if (!values.empty()) backend.copy_in(buffer_.data(), values.data(), buffer_.bytes());
  }

  View<T, N> view() const { return {static_cast<T*>(buffer_.data()), dims_}; }
  std::vector<T> to_host(Backend& backend) const {
    std::vector<T> values(static_cast<size_t>(view().size()));
    if (!values.empty()) backend.copy_out(values.data(), buffer_.data(), buffer_.bytes());
    return values;
  }

 private:
  std::array<int64_t, N> dims_{};
  Buffer buffer_;
};

}  // namespace ei
