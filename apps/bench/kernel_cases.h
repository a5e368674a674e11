#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "apps/bench/bench_data.h"
#include "apps/bench/kernel_bench.h"

namespace ei::bench {

// Measures the kernels that the functions below give it.
class KernelBench {
 public:
  struct Case {
    std::string kernel;
    std::string size;
    double flops = 0;
    double bytes = 0;
    KernelResult::Limit limit = KernelResult::Limit::kPeak;
    double target = 0;
  };

  KernelBench(const KernelBenchOptions& options, KernelReport& report, KernelProgress progress)
      : options_(options), report_(report), progress_(std::move(progress)) {}

  // Whether a kernel is wanted: its data need not be made if not.
  bool wants(std::string_view kernel) const {
    return kernel.find(options_.only) != std::string_view::npos;
  }
  // Runs it once to warm up, then for the time asked for, at least twice. What is measured with
  // Limit::kDense follows the dense run that it is held against.
  void measure(const Case& c, const std::function<void()>& run);
  bool has_tiles() const { return report_.ceilings.tile_flops > 0; }
  // For results that are made elsewhere.
  void announce(const std::string& kernel, const std::string& size) const {
    if (progress_) progress_(kernel, size);
  }
  // The better one counts where there already is a result.
  void add(const KernelResult& result);

 private:
  double ceiling(KernelResult::Limit limit);

  const KernelBenchOptions& options_;
  KernelReport& report_;
  KernelProgress progress_;
  double dense_rate_ = 0;  // of the last kernel held against FMA, flops per second
};

void bench_matmul(Backend& backend, KernelBench& bench);
void bench_prefill_attention(Backend& backend, KernelBench& bench);
void bench_decode_attention(Backend& backend, KernelBench& bench);
void bench_votes(Backend& backend, KernelBench& bench);
void bench_elementwise(Backend& backend, KernelBench& bench);
void bench_steps(Backend& backend, KernelBench& bench);

}  // namespace ei::bench
