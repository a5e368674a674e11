#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "ei/base/view.h"

namespace ei::test {

// A dense array on the host that owns its values.
template <class T, int N>
struct Array {
  Array() = default;
  explicit Array(std::array<int64_t, N> dims, T value = T()) : dims(dims) {
    v.assign(static_cast<size_t>(view().size()), value);
  }
  template <class U>
  explicit Array(const Array<U, N>& other) : dims(other.dims), v(other.v.begin(), other.v.end()) {}

  int64_t dim(int i) const { return dims[static_cast<size_t>(i)]; }
  View<T, N> view() { return {v.data(), dims}; }
  decltype(auto) operator[](int64_t i) { return view()[i]; }
  decltype(auto) operator[](int64_t i) const { return View<const T, N>{v.data(), dims}[i]; }

  std::array<int64_t, N> dims{};
  std::vector<T> v;
};
using Vector = Array<double, 1>;
using Matrix = Array<double, 2>;

// Values rounded to float, so that a backend can be given exactly what the oracle computes with.
template <int N>
Array<double, N> normal(std::array<int64_t, N> dims, uint64_t seed, double sigma = 1,
                        double mean = 0) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> distribution(mean, sigma);
  Array<double, N> array(dims);
  for (double& x : array.v) x = static_cast<float>(distribution(random));
  return array;
}

// Sum of squared errors over the sum of squares of `want`. A value that is not finite where `want`
// is makes it infinite; nothing compared with nothing is 0.
template <class T, class U>
double nmse(const std::vector<T>& got, const std::vector<U>& want) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = double(got[i]) - double(want[i]);
    if (!std::isfinite(e)) return std::numeric_limits<double>::infinity();
    error += e * e;
    norm += double(want[i]) * double(want[i]);
  }
  return error == 0 ? 0 : error / norm;
}

}  // namespace ei::test
