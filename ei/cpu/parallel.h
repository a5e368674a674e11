#pragma once

#include <algorithm>
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

// The same of calls of about a microsecond, which take as long as each other: a thread takes some
// at a time, lest they wait for each other to take one.
template <class F>
void parallel_for_short(int n_threads, int64_t n, const F& f) {
  const int64_t step = std::clamp<int64_t>(n / (8 * int64_t{n_threads}), 1, 32);
  parallel_for(n_threads, (n + step - 1) / step, [&](int64_t run) {
    for (int64_t i = run * step; i < std::min(n, (run + 1) * step); ++i) f(i);
  });
}

}  // namespace ei::cpu
