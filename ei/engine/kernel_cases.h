#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "ei/engine/bench_data.h"
#include "ei/engine/kernel_bench.h"

namespace ei {

// Measures the kernels that the functions below give it.
class KernelBench {
 public:
  struct Case {
    std::string kernel;
    std::string size;
    double flops = 0;
    double bytes = 0;
    KernelResult::Limit limit = KernelResult::Limit::kFma;
    double target = 0;
    double dense_rate = 0;  // with Limit::kDense: flops per second of the dense run
  };

  KernelBench(const KernelBenchOptions& options, KernelReport& report, KernelProgress progress)
      : options_(options), report_(report), progress_(std::move(progress)) {}

  // Whether a kernel is wanted: its data need not be made if not.
  bool wants(std::string_view kernel) const {
    return kernel.find(options_.only) != std::string_view::npos;
  }
  // Runs it once to warm up, then for the time asked for, at least three times. Returns the least
  // seconds of a run.
  double measure(const Case& c, const std::function<void()>& run);
  // For results that are made elsewhere.
  void announce(const std::string& kernel, const std::string& size) const {
    if (progress_) progress_(kernel, size);
  }
  void add(const KernelResult& result) { report_.results.push_back(result); }

 private:
  const KernelBenchOptions& options_;
  KernelReport& report_;
  KernelProgress progress_;
};

void bench_matmul(Backend& backend, KernelBench& bench);
void bench_prefill_attention(Backend& backend, KernelBench& bench);
void bench_decode_attention(Backend& backend, KernelBench& bench);
void bench_elementwise(Backend& backend, KernelBench& bench);
void bench_steps(Backend& backend, KernelBench& bench);

}  // namespace ei
