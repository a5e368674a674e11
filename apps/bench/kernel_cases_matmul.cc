#include <fmt/format.h>

#include <utility>

#include "apps/bench/kernel_cases.h"

namespace ei::bench {
namespace {

using Limit = KernelResult::Limit;

// Many rows: a prompt. One row or few: decoding, a matrix-vector product.
constexpr const char* kMatMul = "matmul";
constexpr const char* kMatVec = "matvec";

MatMul::Part part(const Weight& weight, const ActArray& out) {
  return {.weight = weight, .bias = {}, .out = out.act()};
}

void bench_prompt(Backend& backend, KernelBench& bench) {
  for (const auto& [inputs, outputs] :
       {std::pair<int64_t, int64_t>{576, 1536}, {2048, 2048}, {2048, 8192}}) {
    BenchData data(backend);
    const Weight weight = data.factor(outputs, inputs);
    for (const int64_t rows : {512, 2048}) {
      const ActArray x = data.act(rows, inputs);
      const ActArray out(backend, rows, outputs);
      bench.measure({.kernel = kMatMul,
                     .size = fmt::format("{} rows by {}x{}", rows, inputs, outputs),
                     .flops = 2.0 * double(rows * inputs * outputs),
                     .limit = Limit::kPeak,
                     .target = bench.has_tiles() ? 0.5 : 0.8},
                    [&] { backend.run(MatMul{.x = x.act(), .parts = {part(weight, out)}}); });
    }
  }
}

// The matrices of one Llama-3.2-1B layer.
struct Layer {
  Layer(BenchData& data, WeightFormat format)
      : q(data.factor(2048, 2048, format)),
        k(data.factor(512, 2048, format)),
        v(data.factor(512, 2048, format)),
        o(data.factor(2048, 2048, format)),
        gate(data.factor(8192, 2048, format)),
        up(data.factor(8192, 2048, format)),
        down(data.factor(2048, 8192, format)) {}

  int64_t bytes() const {
    return q.bytes() + k.bytes() + v.bytes() + o.bytes() + gate.bytes() + up.bytes() + down.bytes();
  }

  Weight q, k, v, o, gate, up, down;
};

// As many layers as no cache holds, each read once, as a decode step does.
void bench_step(Backend& backend, KernelBench& bench, WeightFormat format) {
  BenchData data(backend);
  std::vector<Layer> layers;
  double bytes = 0;
  for (int l = 0; l < 4; ++l) bytes += double(layers.emplace_back(data, format).bytes());
  const Weight head = data.table(128256, 2048, format);
  for (const int64_t n : {1, 4}) {
    const ActArray x = data.act(n, 2048), wide = data.act(n, 8192);
    const ActArray q(backend, n, 2048), k(backend, n, 512), v(backend, n, 512);
    const ActArray gate(backend, n, 8192), up(backend, n, 8192);
    const ActArray logits(backend, n, head.rows);
    const std::string sequences =
        fmt::format("{} sequence{}, {}", n, n == 1 ? "" : "s", block_of(format).name);
    bench.measure(
        {.kernel = kMatVec,
         .size = sequences + " layers of a 1B model",
         .bytes = bytes,
         .limit = Limit::kMemory,
         .target = 0.85},
        [&] {
          for (const Layer& l : layers) {
            backend.run(MatMul{.x = x.act(), .parts = {part(l.q, q), part(l.k, k), part(l.v, v)}});
            backend.run(MatMul{.x = x.act(), .parts = {part(l.o, q)}});
            backend.run(MatMul{.x = x.act(), .parts = {part(l.gate, gate), part(l.up, up)}});
            backend.run(MatMul{.x = wide.act(), .parts = {part(l.down, q)}});
          }
        });
    bench.measure({.kernel = kMatVec,
                   .size = sequences + " head of a 1B model",
                   .bytes = double(head.bytes()),
                   .limit = Limit::kMemory,
                   .target = 0.85},
                  [&] { backend.run(MatMul{.x = x.act(), .parts = {part(head, logits)}}); });
  }
}

}  // namespace

void bench_matmul(Backend& backend, KernelBench& bench) {
  if (bench.wants(kMatMul)) bench_prompt(backend, bench);
  if (!bench.wants(kMatVec)) return;
  for (const auto format : {WeightFormat::kBF16, WeightFormat::kQ8_0, WeightFormat::kQ4_K})
    bench_step(backend, bench, format);
}

}  // namespace ei::bench
