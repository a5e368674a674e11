#include "ei/engine/kernel_bench.h"

#include <algorithm>
#include <chrono>

#include "ei/engine/kernel_cases.h"
#include "ei/engine/make_backend.h"

namespace ei {

double KernelBench::measure(const Case& c, const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  announce(c.kernel, c.size);
  run();
  double best = 1e30;
  const auto start = Clock::now();
  for (int i = 0; i < 3 || seconds_since(start) < options_.seconds; ++i) {
    const auto begin = Clock::now();
    run();
    best = std::min(best, seconds_since(begin));
  }
  KernelResult result = {.kernel = c.kernel,
                         .size = c.size,
                         .seconds = best,
                         .flops = c.flops,
                         .bytes = c.bytes,
                         .limit = c.limit,
                         .target = c.target};
  using Limit = KernelResult::Limit;
  if (c.limit == Limit::kFma) result.share = c.flops / best / report_.ceilings.fma_flops;
  if (c.limit == Limit::kMemory) result.share = c.bytes / best / report_.ceilings.memory_bytes;
  if (c.limit == Limit::kDense) result.share = c.flops / best / c.dense_rate;
  add(result);
  return best;
}

KernelReport bench_kernels(const KernelBenchOptions& options, const KernelProgress& progress) {
  if (progress) progress("ceilings", "");
  const std::unique_ptr<Backend> backend = make_backend(Device::kCpu, options.threads);
  KernelReport report = {.device = backend->name(), .ceilings = measure_ceilings(options.threads)};
  KernelBench bench(options, report, progress);
  bench_matmul(*backend, bench);
  bench_prefill_attention(*backend, bench);
  bench_decode_attention(*backend, bench);
  bench_elementwise(*backend, bench);
  bench_steps(*backend, bench);
  return report;
}

}  // namespace ei
