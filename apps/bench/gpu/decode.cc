#include <cmath>

#include "apps/bench/gpu/gpu_bench.h"
#include "ei/cache/kv_cache.h"

using ei::bench::act_of;
using ei::bench::Bench;
using ei::bench::guarded;
using ei::bench::median;
using ei::bench::Stopwatch;

extern "C" {

// Decode attention of n_sequences whose caches hold n rows each; ms of one call, of `repeat` as one
// graph, as steps are.
int ei_decode(void* handle, int64_t n, int64_t n_sequences, int64_t n_heads, int64_t n_kv_heads,
              int64_t d, const void* q_ptr, const void* k_ptr, const void* v_ptr, void* out_ptr,
              int repeat, double* ms) {
  return guarded([&] {
    auto& bench = *static_cast<Bench*>(handle);
    const ei::KvShape shape = {
        .n_layers = 1, .n_kv_heads = n_kv_heads, .layout = bench.layout(d), .max_tokens = n};
    ei::PagePool pool(bench.backend, shape.layout.bytes());
    std::vector<std::unique_ptr<ei::KvCache>> caches;
    std::vector<ei::KvLayer> kv;
    for (int64_t i = 0; i < n_sequences; ++i) {
      caches.push_back(std::make_unique<ei::KvCache>(bench.backend, pool, shape));
      caches.back()->reserve(n);
      caches.back()->append(0, act_of(k_ptr, n, n_kv_heads * d), act_of(v_ptr, n, n_kv_heads * d));
      kv.push_back(caches.back()->layer(0));
    }
    const ei::DecodeAttention op = {.q = act_of(q_ptr, n_sequences, n_heads * d),
                                    .kv = kv,
                                    .scale = 1 / std::sqrt(static_cast<float>(d)),
                                    .out = act_of(out_ptr, n_sequences, n_heads * d)};
    Stopwatch watch(bench.backend.stream());
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) {
      watch.start();
      bench.backend.repeat([&] {
        for (int j = 0; j < repeat; ++j) bench.backend.run(op);
      });
      watch.stop();
      if (i > 1) times.push_back(watch.ms() / repeat);
    }
    *ms = median(times);
  });
}

}  // extern "C"
