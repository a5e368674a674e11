#pragma once

#include <cstdint>
#include <type_traits>

#include "ei/cpu/team.h"

namespace ei::cpu {

// f(i) or f(i, thread) for i in [0, n), on n_threads threads numbered from 0, in no order. f must
// not throw.
template <class F>
void parallel_for(int n_threads, int64_t n, const F& f) {
  const auto call = [](const void* f, int64_t i, int thread) {
    if constexpr (std::is_invocable_v<F, int64_t, int>) {
      (*static_cast<const F*>(f))(i, thread);
    } else {
      (*static_cast<const F*>(f))(i);
    }
  };
  if (n_threads == 1 || n <= 1) {
    for (int64_t i = 0; i < n; ++i) call(&f, i, 0);
    return;
  }
  Team::mine().run(n_threads, n, call, &f);
}

}  // namespace ei::cpu
