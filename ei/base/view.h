#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "ei/base/host_device.h"

namespace ei {

// A dense row-major array of N dimensions that somebody else owns. Dimensions are always written
// [outer, ..., inner].
template <class T, int N>
struct View {
  T* data = nullptr;
  std::array<int64_t, N> dims{};

  EI_HOST_DEVICE int64_t dim(int i) const { return dims[static_cast<size_t>(i)]; }
  EI_HOST_DEVICE int64_t size() const {
    int64_t n = 1;
    for (const int64_t d : dims) n *= d;
    return n;
  }

  // The sub-array at outer index i, or the element when there is one dimension.
  EI_HOST_DEVICE decltype(auto) operator[](int64_t i) const {
    assert(i >= 0 && i < dims[0]);
    if constexpr (N == 1) {
      return data[i];
    } else {
      View<T, N - 1> inner;
      int64_t step = 1;
      for (int k = 1; k < N; ++k)
        step *= inner.dims[static_cast<size_t>(k - 1)] = dims[static_cast<size_t>(k)];
      inner.data = data + i * step;
      return inner;
    }
  }

  // The outer range [begin, begin + count).
  EI_HOST_DEVICE View slice(int64_t begin, int64_t count) const {
    assert(begin >= 0 && count >= 0 && begin + count <= dims[0]);
    View part = *this;
    int64_t step = 1;
    for (int k = 1; k < N; ++k) step *= dims[static_cast<size_t>(k)];
    part.data += begin * step;
    part.dims[0] = count;
    return part;
  }

  EI_HOST_DEVICE T* begin() const { return data; }
  EI_HOST_DEVICE T* end() const { return data + size(); }

  // A view of T reads as a view of const T.
  EI_HOST_DEVICE operator View<const T, N>() const requires(!std::is_const_v<T>) {
    return {data, dims};
  }
};

}  // namespace ei
