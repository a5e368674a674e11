#include "apps/bench/kernel_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "apps/bench/kernel_cases.h"
#include "ei/base/affinity.h"
#include "ei/engine/make_backend.h"

namespace ei::bench {

// The limit's ceiling now; the report has the highest that was seen.
double KernelBench::ceiling(KernelResult::Limit limit) {
  const auto seen = [](double& highest, double now) {
    highest = std::max(highest, now);
    return now;
  };
  switch (limit) {
    case KernelResult::Limit::kPeak:
      if (report_.ceilings.tile_flops > 0)
        return seen(report_.ceilings.tile_flops, measure_tile_flops(options_.hardware.threads));
      return seen(report_.ceilings.fma_flops, measure_fma_flops(options_.hardware.threads));
    case KernelResult::Limit::kMemory:
      return seen(report_.ceilings.memory_bytes, measure_memory_bytes(options_.hardware.threads));
    case KernelResult::Limit::kDense:
      return dense_rate_;
    case KernelResult::Limit::kStep:
      break;
  }
  return 0;
}

void KernelBench::measure(const Case& c, const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  announce(c.kernel, c.size);
  run();
  double best = 1e30;
  const double before = ceiling(c.limit);
  const auto start = Clock::now();
  for (int i = 0; i < 2 || seconds_since(start) < options_.seconds; ++i) {
    const auto begin = Clock::now();
    run();
    best = std::min(best, seconds_since(begin));
  }
  const double rate = (c.limit == KernelResult::Limit::kMemory ? c.bytes : c.flops) / best;
  add({.kernel = c.kernel,
       .size = c.size,
       .seconds = best,
       .flops = c.flops,
       .bytes = c.bytes,
       .limit = c.limit,
       .share = rate / std::max(before, ceiling(c.limit)),
       .target = c.target});
  if (c.limit == KernelResult::Limit::kPeak) dense_rate_ = rate;
}

void KernelBench::add(const KernelResult& result) {
  const auto same = std::ranges::find_if(report_.results, [&](const KernelResult& r) {
    return r.kernel == result.kernel && r.size == result.size;
  });
  if (same == report_.results.end()) {
    report_.results.push_back(result);
  } else if (result.limit == KernelResult::Limit::kStep ? result.share < same->share
                                                        : result.share > same->share) {
    *same = result;
  }
}

KernelReport bench_kernels(const KernelBenchOptions& options, const KernelProgress& progress) {
  const std::unique_ptr<Backend> backend = make_backend(options.hardware);
  KernelBenchOptions used = options;
  if (used.hardware.threads == 0)
    used.hardware.threads = default_threads(pinned_cpus(used.hardware.pin));
  if (progress) progress("ceilings", "");
  const bool bf16 = used.hardware.math == Math::kBF16;
  KernelReport report = {
      .device = backend->name(),
      .ceilings = {.fma_flops = measure_fma_flops(used.hardware.threads),
                   .tile_flops = bf16 ? measure_tile_flops(used.hardware.threads) : 0,
                   .memory_bytes = measure_memory_bytes(used.hardware.threads),
                   .l2_bytes = measure_l2_bytes(used.hardware.threads)}};
  for (int64_t round = 1; round <= used.rounds; ++round) {
    KernelBench bench(used, report, [&](const std::string& kernel, const std::string& size) {
      if (progress) progress(fmt::format("round {} of {}, {}", round, used.rounds, kernel), size);
    });
    backend->pinned([&] {
      bench_matmul(*backend, bench);
      bench_prefill_attention(*backend, bench);
      bench_decode_attention(*backend, bench);
      bench_votes(*backend, bench);
      bench_elementwise(*backend, bench);
      bench_steps(*backend, bench);
    });
  }
  return report;
}

}  // namespace ei::bench
