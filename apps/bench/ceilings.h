#pragma once

#include <cstdint>

namespace ei::bench {

// What this machine's CPU can do at best: measured, to hold kernels against.
struct Ceilings {
  double fma_flops = 0;     // float multiply-adds per second, each counted as 2
  double tile_flops = 0;    // the same in bf16 in the tile unit; 0: it is not used
  double memory_bytes = 0;  // bytes read per second from memory
  double l2_bytes = 0;      // bytes read per second from each thread's own L2 cache, together
};

// On `threads` threads. Each figure is the best of several short runs, half a second together: a
// ceiling, whatever else the machine is doing.
double measure_fma_flops(int threads);
double measure_tile_flops(int threads);  // 0: none is used
double measure_memory_bytes(int threads);
double measure_l2_bytes(int threads);

}  // namespace ei::bench
