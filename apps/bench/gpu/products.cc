#include "apps/bench/gpu/gpu_bench.h"

namespace {

using ei::Act;
using ei::bench::act_of;
using ei::bench::Bench;
using ei::bench::guarded;
using ei::bench::median;
using ei::bench::Stopwatch;

// bf16 around 2^-7, of either sign.
std::vector<uint16_t> random_numbers(int64_t n) {
  std::vector<uint16_t> values(static_cast<size_t>(n));
  uint32_t state = 1;
  for (uint16_t& x : values) {
    state = state * 1664525 + 1013904223;
    x = static_cast<uint16_t>(0x3c00 | (state >> 16 & 0x80ff));
  }
  return values;
}

}  // namespace

extern "C" {

// x [n, k] times a random weight [m, k] in a format, or what the backend's math makes of a layer's,
// so many times as one graph; rotates among `n_weights` so that the cache holds none.
int ei_matmul(void* handle, const char* format, int64_t n, int64_t k, int64_t m, int n_weights,
              int repeat, double* ms) {
  return guarded([&] {
    auto& bench = *static_cast<Bench*>(handle);
    const ei::WeightFormat stored = ei::weight_format(format).value();
    std::vector<ei::Weight> weights;
    const std::vector<uint16_t> x_values = random_numbers(n * k);
    std::vector<uint16_t> values = random_numbers(m * ei::row_bytes(stored, k) / 2);
    if (ei::is_quantized(stored))  // scales are of order one, whatever the format
      for (uint16_t& value : values) value = static_cast<uint16_t>(value * 40503u >> 4 & 0x3F3Fu);
    for (int i = 0; i < n_weights; ++i)
      weights.push_back(bench.backend.place_factor({values.data(), stored, m, k}));
    const ei::Buffer x(bench.backend, n * k * 2), out(bench.backend, n * m * 2);
    bench.backend.copy_in(x.data(), x_values.data(), n * k * 2);
    const auto run_all = [&] {
      for (int i = 0; i < repeat; ++i)
        bench.backend.run(
            ei::MatMul{.x = act_of(x.data(), n, k),
                       .parts = {{{.weight = weights[static_cast<size_t>(i % n_weights)],
                                   .bias = {},
                                   .out = act_of(out.data(), n, m)}}}});
    };
    Stopwatch watch(bench.backend.stream());
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) {
      watch.start();
      bench.backend.repeat(run_all);
      watch.stop();
      if (i > 1) times.push_back(watch.ms() / repeat);
    }
    *ms = median(times);
    // Not kept: a bench of many shapes would fill the memory.
    for (const ei::Weight& weight : weights)
      bench.backend.release(const_cast<void*>(weight.data), weight.bytes());
  });
}

// Norms, SwiGLU and, if asked for, the products of one layer for a chunk of n tokens, as the model
// has them: ms, of `repeat`.
int ei_layer(void* handle, int64_t n, int64_t hidden, int64_t kv, int64_t intermediate,
             int products, int repeat, double* ms) {
  return guarded([&] {
    auto& bench = *static_cast<Bench*>(handle);
    const auto placed = [&](int64_t rows, int64_t cols) {
      const std::vector<uint16_t> values = random_numbers(rows * cols);
      return bench.backend.place_factor({values.data(), ei::WeightFormat::kBF16, rows, cols});
    };
    const ei::Weight q = placed(hidden, hidden), k = placed(kv, hidden), v = placed(kv, hidden),
                     o = placed(hidden, hidden), gate = placed(intermediate, hidden),
                     up = placed(intermediate, hidden), down = placed(hidden, intermediate);
    std::vector<ei::Buffer> buffers;
    const auto rows = [&](int64_t cols) {
      const std::vector<uint16_t> values = random_numbers(n * cols);
      const ei::Buffer& buffer = buffers.emplace_back(bench.backend, n * cols * 2);
      bench.backend.copy_in(buffer.data(), values.data(), buffer.bytes());
      return act_of(buffer.data(), n, cols);
    };
    const Act x = rows(hidden), h = rows(hidden), q_out = rows(hidden), k_out = rows(kv),
              v_out = rows(kv), context = rows(hidden), gate_out = rows(intermediate),
              up_out = rows(intermediate);
    const std::vector<float> ones(static_cast<size_t>(hidden), 1.0f);
    const ei::DeviceArray<float, 1> weight(bench.backend, ones);
    const auto multiply = [&](const ei::MatMul& op) {
      if (products != 0) bench.backend.run(op);
    };
    const auto norm = [&] {
      bench.backend.run(ei::RmsNorm{.x = context, .weight = weight.view(), .out = h});
    };
    Stopwatch watch(bench.backend.stream());
    for (int i = 0; i < repeat + 8; ++i) {
      if (i == 8) watch.start();
      norm();
      multiply({.x = h,
                .parts = {{{.weight = q, .bias = {}, .out = q_out},
                           {.weight = k, .bias = {}, .out = k_out},
                           {.weight = v, .bias = {}, .out = v_out}}}});
      multiply(
          {.x = context, .parts = {{{.weight = o, .bias = {}, .out = x, .accumulate = true}}}});
      norm();
      multiply({.x = h,
                .parts = {{{.weight = gate, .bias = {}, .out = gate_out},
                           {.weight = up, .bias = {}, .out = up_out}}}});
      bench.backend.run(ei::SwiGlu{.gate = gate_out, .up = up_out, .out = gate_out});
      multiply(
          {.x = gate_out, .parts = {{{.weight = down, .bias = {}, .out = x, .accumulate = true}}}});
    }
    watch.stop();
    *ms = watch.ms() / repeat;
  });
}

}  // extern "C"
