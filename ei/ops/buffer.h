#pragma once

#include <span>
#include <utility>
#include <vector>

#include "ei/ops/backend.h"

namespace ei {

// A piece of device memory, owned.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Backend& backend, int64_t bytes)
      : backend_(&backend), data_(bytes > 0 ? backend.allocate(bytes) : nullptr), bytes_(bytes) {}
  // Of what AllReduce sums (Backend::allocate_summed).
  static Buffer summed(Backend& backend, int64_t bytes) {
    Buffer buffer;
    buffer.backend_ = &backend;
    buffer.data_ = bytes > 0 ? backend.allocate_summed(bytes) : nullptr;
    buffer.bytes_ = bytes;
    return buffer;
  }
  Buffer(Buffer&& other) noexcept
      : backend_(other.backend_),
        data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) backend_->release(data_, bytes_);
  }

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

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
