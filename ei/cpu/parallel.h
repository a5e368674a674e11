#pragma once

#include <omp.h>

#include <cstdint>
#include <type_traits>

namespace ei::cpu {

// f(i) or f(i, thread) for i in [0, n), on n_threads threads numbered from 0, in no order. f must
// not throw.
template <class F>
void parallel_for(int n_threads, int64_t n, const F& f) {
  const auto call = [&f](int64_t i, int thread) {
    if constexpr (std::is_invocable_v<F, int64_t, int>) {
      f(i, thread);
    } else {
      f(i);
    }
  };
  if (n_threads == 1 || n <= 1) {  // for a team of one, OpenMP would allocate memory every time
    for (int64_t i = 0; i < n; ++i) call(i, 0);
    return;
  }
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
  for (int64_t i = 0; i < n; ++i) call(i, omp_get_thread_num());
}

}  // namespace ei::cpu
