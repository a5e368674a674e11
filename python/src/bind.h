#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "apps/cli/options.h"

// What the package entropyinfer has in C++: the module _core, thin on purpose. What users call is
// the Python around it.
namespace ei::python {

namespace nb = nanobind;

// How attention is spent, by name: what evaluations take, PREFILL+DECODE with settings behind it,
// or PREFILL alone beside the default for decoding.
class Policy {
 public:
  // Throws ValueError with what is not known or does not fit.
  explicit Policy(std::string name, const nb::kwargs& settings = nb::kwargs());

  const std::string& name() const { return name_; }
  const PrefillPolicy& prefill() const { return policies_.prefill; }
  const DecodePolicy& decode() const { return policies_.decode; }
  std::string describe() const;  // JSON: every setting that matters

 private:
  std::string name_;
  cli::Policies policies_;
};

// An array that owns its numbers: views of it keep them alive.
template <class T, size_t N>
nb::ndarray<nb::numpy, T, nb::ndim<N>> array(std::vector<T> values, std::array<size_t, N> shape) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  T* const data = owned->data();
  const nb::capsule owner(owned.get(),
                          [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  owned.release();
  return nb::ndarray<nb::numpy, T, nb::ndim<N>>(data, N, shape.data(), owner);
}

// Contiguous arrays of any framework, on the CPU.
template <class T, int N>
struct ArrayOf;
template <class T>
struct ArrayOf<T, 1> {
  using type = nb::ndarray<T, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
};
template <class T>
struct ArrayOf<T, 2> {
  using type = nb::ndarray<T, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
};
template <class T>
struct ArrayOf<T, 3> {
  using type = nb::ndarray<T, nb::shape<-1, -1, -1>, nb::c_contig, nb::device::cpu>;
};
template <class T, int N>
using Array = typename ArrayOf<T, N>::type;

// What one of a few names stands for. Throws ValueError that names them.
template <class T>
T choose(const char* what, const std::string& name,
         const std::vector<std::pair<const char*, T>>& choices) {
  std::string names;
  for (const auto& [known, value] : choices) {
    if (name == known) return value;
    names += (names.empty() ? "" : ", ") + std::string(known);
  }
  throw nb::value_error((std::string(what) + " is '" + name + "', expected " + names).c_str());
}

void bind_policy(nb::module_& m);
void bind_engine(nb::module_& m);
void bind_profile(nb::module_& m);
void bind_ops(nb::module_& m);
void bind_reader(nb::module_& m);

}  // namespace ei::python
