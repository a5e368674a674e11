#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>

#include "ei/base/fail.h"
#include "ei/base/view.h"
#include "ei/cache/kv_cache.h"
#include "ei/cuda/backend.h"
#include "python/src/bind.h"

// What the ops of the package share.
namespace ei::python {

// Where an op's tensors are, and what they are: rows of float on a CPU, rows of bf16 on a GPU, the
// thread's current one, as activations are.
struct Place {
  bool bf16 = false;     // the type that keys and values are kept in, which were rounded to it
  int gpu = -1;          // its number; -1: a CPU
  uintptr_t stream = 0;  // the cudaStream_t to run in

  bool on_gpu() const { return gpu >= 0; }
  DType dtype() const { return bf16 ? DType::kBF16 : DType::kF32; }
};

// All calls share a backend for each GPU and for each of a CPU's ways to compute products, one call
// at a time. A GPU's ops run in the place's stream, and nobody waits for them.
class Turn {
 public:
  explicit Turn(const Place& place);
  Backend& backend() const { return backend_; }

  // For those who only give memory back.
  static std::mutex& mutex();

 private:
  std::lock_guard<std::mutex> guard_;
  Backend& backend_;
  std::optional<StreamScope> stream_;
};

// Arrays of either place, contiguous. Rows are [tokens, heads, head_dim].
using Rows = nb::ndarray<nb::shape<-1, -1, -1>, nb::c_contig>;
template <int N>
using Ints = nb::ndarray<int32_t, nb::ndim<N>, nb::c_contig>;
template <int N>
using Floats = nb::ndarray<float, nb::ndim<N>, nb::c_contig>;

void expect_place(const Place& place, const char* what, int device_type, int device_id);

template <class T, int N>
View<T, N> view(const Place& place, const char* what,
                const nb::ndarray<T, nb::ndim<N>, nb::c_contig>& array) {
  expect_place(place, what, array.device_type(), array.device_id());
  View<T, N> view{array.data(), {}};
  for (size_t i = 0; i < N; ++i) view.dims[i] = static_cast<int64_t>(array.shape(i));
  return view;
}

// Throws Error when the array is of another place or type.
Act act(const Place& place, const char* what, const Rows& rows);
// Throws Error that names both shapes.
void expect_rows(const char* what, const Rows& rows, size_t n, size_t heads, size_t d);

// Pages for one layer's keys and values, to be made and used in a turn.
class LayerCache {
 public:
  LayerCache(Backend& backend, int64_t n_kv_heads, const PageLayout& layout, int64_t max_tokens)
      : pool_(backend, layout.bytes()),
        cache_(backend, pool_, {1, n_kv_heads, layout, max_tokens}) {
    cache_.reserve(max_tokens);
  }
  KvLayer append(const Act& k, const Act& v) {
    cache_.append(0, k, v);
    return cache_.layer(0);
  }
  void rewind() { cache_.rewind(); }

 private:
  PagePool pool_;
  KvCache cache_;
};

// Tokens of a page, as the engine has them.
inline int64_t page_of(int64_t segment) { return (512 + segment - 1) / segment * segment; }

}  // namespace ei::python
