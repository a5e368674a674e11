#include <fmt/format.h>

#include "apps/bench/kernel_cases.h"

namespace ei::bench {
namespace {

using Limit = KernelResult::Limit;

// Sizes of a 2,048 token chunk of Llama-3.2-1B. Bytes are those read and written.
constexpr int64_t kRows = 2048;

void bench_norm(Backend& backend, KernelBench& bench) {
  BenchData data(backend);
  const ActArray x = data.act(kRows, 2048);
  const ActArray out(backend, kRows, 2048);
  const DeviceArray<float, 1> weight(backend, std::vector<float>(2048, 1.0f));
  bench.measure(
      {.kernel = "RMSNorm",
       .size = "2048 rows of 2048",
       .bytes = 2.0 * double(kRows * 2048 * x.act().elem_bytes),
       .limit = Limit::kMemory},
      [&] { backend.run(RmsNorm{.x = x.act(), .weight = weight.view(), .out = out.act()}); });
}

void bench_rope(Backend& backend, KernelBench& bench) {
  BenchData data(backend);
  const ActArray x = data.act(kRows, 2048);
  std::vector<float> angles(static_cast<size_t>(kRows * 32), 0.6f);
  const DeviceArray<float, 2> cos(backend, {kRows, 32}), sin(backend, {kRows, 32});
  for (const auto& a : {cos.view(), sin.view()})
    backend.copy_in(a.data, angles.data(), a.size() * int64_t{sizeof(float)});
  bench.measure({.kernel = "RoPE",
                 .size = "2048 rows of 32 heads, d 64",
                 .bytes = 2.0 * double(kRows * 2048 * x.act().elem_bytes),
                 .limit = Limit::kMemory},
                [&] { backend.run(Rope{.x = x.act(), .cos = cos.view(), .sin = sin.view()}); });
}

void bench_swiglu(Backend& backend, KernelBench& bench) {
  BenchData data(backend);
  const ActArray gate = data.act(kRows, 8192), up = data.act(kRows, 8192);
  const ActArray out(backend, kRows, 8192);
  bench.measure({.kernel = "SwiGLU",
                 .size = "2048 rows of 8192",
                 .bytes = 3.0 * double(kRows * 8192 * gate.act().elem_bytes),
                 .limit = Limit::kMemory},
                [&] { backend.run(SwiGlu{.gate = gate.act(), .up = up.act(), .out = out.act()}); });
}

void bench_sample(Backend& backend, KernelBench& bench, const std::string& size, int64_t n_rows,
                  const SamplingParams& params) {
  constexpr int64_t kVocab = 128256;
  BenchData data(backend);
  const ActArray logits = data.act(n_rows, kVocab);
  const DeviceArray<int32_t, 1> token(backend, {n_rows});
  std::vector<Sample::Row> rows;
  for (int64_t i = 0; i < n_rows; ++i) rows.push_back({.params = params, .logits_row = i});
  bench.measure(
      {.kernel = "sampling",
       .size = size,
       .bytes = double(n_rows * kVocab * logits.act().elem_bytes),
       .limit = Limit::kMemory},
      [&] {
        backend.run(Sample{
            .logits = logits.act(), .rows = rows, .n_tokens = kVocab, .token = token.view()});
      });
}

}  // namespace

void bench_elementwise(Backend& backend, KernelBench& bench) {
  if (bench.wants("RMSNorm")) bench_norm(backend, bench);
  if (bench.wants("RoPE")) bench_rope(backend, bench);
  if (bench.wants("SwiGLU")) bench_swiglu(backend, bench);
  if (bench.wants("sampling")) {
    const SamplingParams usual = {.temperature = 0.6f, .top_k = 40, .top_p = 0.9f};
    bench_sample(backend, bench, "128256 logits, greedy", 1, {});
    bench_sample(backend, bench, "128256 logits, top-k 40, top-p 0.9", 1, usual);
    bench_sample(backend, bench, "16 rows of it", 16, usual);
  }
}

}  // namespace ei::bench
