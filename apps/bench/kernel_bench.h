#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "apps/bench/ceilings.h"
#include "ei/engine/engine.h"

namespace ei::bench {

// One op, or a few that belong together, at one size.
struct KernelResult {
  // What bounds it, and so what its share is of.
  enum class Limit : uint8_t {
    kPeak,    // multiply-adds per second, in the tile unit where there is one
    kMemory,  // bytes per second read from memory
    kDense,   // the rate of dense attention of the same shape
    kStep     // the time of the prefill or decode step it is part of: less is better
  };

  std::string kernel;
  std::string size;
  double seconds = 0;  // least of several runs, as the ceilings are the best of several
  double flops = 0;    // one of these two is not 0, except where Limit is kStep
  double bytes = 0;
  Limit limit = Limit::kPeak;
  double share = 0;   // of the limit as it was around these runs
  double target = 0;  // share to be reached, or with kStep not to be passed; 0: none is set

  bool met() const { return limit == Limit::kStep ? share <= target : share >= target; }
};

struct KernelReport {
  std::string device;
  Ceilings ceilings;
  std::vector<KernelResult> results = {};
};

struct KernelBenchOptions {
  EngineOptions hardware = {.device = Device::kCpu};  // threads, cpu, math
  std::string only;      // kernels whose name contains this; empty: all
  int64_t rounds = 3;    // over everything: a neighbour of the machine may be busy during one
  double seconds = 0.3;  // spent on each size in each round, at least
};

// Measures the ops of the backend that Engine would use, one after another, each between two looks
// at the ceiling that it is held against: a machine with neighbours delivers now more, now less. Of
// several rounds the one with the best share counts. Takes a few minutes and 2 GiB. `progress` gets
// the kernel that comes next.
using KernelProgress = std::function<void(const std::string& kernel, const std::string& size)>;
KernelReport bench_kernels(const KernelBenchOptions& options, const KernelProgress& progress = {});

}  // namespace ei::bench
