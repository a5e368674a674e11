// A C interface to timings on the GPU, for bench_gpu.py, which runs PyTorch beside it on the
// same tensors. Pointers named *_ptr are device memory of the caller's.
#include "apps/bench/gpu/gpu_bench.h"

#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ei/base/error.h"
#include "ei/base/half.h"
#include "ei/base/thread_ranks.h"
#include "ei/cache/kv_cache.h"
#include "ei/cache/prefix_cache.h"
#include "ei/decode/compress.h"
#include "ei/decode/decode.h"
#include "ei/decode/sampler.h"
#include "ei/engine/named_shapes.h"
#include "ei/ops/host_memory.h"
#include "ei/policy/named.h"
#include "ei/prefill/prefill.h"

struct StepTimes {
  double step_ms;   // median, host and device
  double host_ms;   // of a step, without waiting for its tokens
  double plain_ms;  // a step whose kernels are launched one by one, not as a graph
};

namespace {

using ei::Act;
using ei::bench::act_of;
using ei::bench::Bench;
using ei::bench::guarded;
using ei::bench::median;
using ei::bench::Stopwatch;
using Clock = std::chrono::steady_clock;

thread_local std::string last_error;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// n_steps as a graph, then as many without; every sequence goes on with what it draws.
StepTimes time_steps(Bench& bench, ei::Activations& act, std::vector<ei::Running> running,
                     ei::Sampler& sampler, std::span<const ei::Sampler::Row> rows, int n_steps) {
  ei::Decoder decoder(bench.backend, *bench.model, std::ssize(running));
  std::vector<double> steps, host, plain;
  for (int i = 0; i < 2 * n_steps; ++i) {
    bench.backend.use_graphs(i < n_steps);
    const auto begin = Clock::now();
    const Act logits = decoder.step(act, running);
    for (const ei::Running& sequence : running) sequence.cache->advance(1);
    if (i < n_steps) host.push_back(ms_since(begin));
    const auto drawn = sampler.draw(logits, rows);
    for (size_t s = 0; s < running.size(); ++s) running[s].token = drawn[s];
    (i < n_steps ? steps : plain).push_back(ms_since(begin));
  }
  bench.backend.use_graphs(true);
  return {median(steps), median(host), median(plain)};
}

// By name; base and alpha of a policy that has budgets.
ei::PrefillPolicy policy_of(const char* name, float base, float alpha) {
  ei::PrefillPolicy policy = *ei::find_prefill(name, /*on_gpu=*/true);
  if (policy.estimate == ei::Estimate::kBounds && !policy.is_dense()) {
    policy.budget.base = base;
    policy.budget.alpha = alpha;
  }
  return policy;
}

// Of so many of the keys k [n, n_kv_heads * d] as a model's sketch is made of.
ei::Sketch sketch_of(Bench& bench, const Act& k, const ei::Sketch::Shape& shape) {
  const int64_t n = std::min<int64_t>(1024, k.rows), d = shape.head_dim;
  std::vector<uint16_t> row(static_cast<size_t>(k.cols));
  std::vector<float> keys(static_cast<size_t>(n * k.cols));
  for (int64_t i = 0; i < n; ++i) {
    bench.backend.copy_out(row.data(), k.slice(i * k.rows / n, 1).data, k.cols * 2);
    for (int64_t c = 0; c < k.cols; ++c)
      keys[static_cast<size_t>((c / d * n + i) * d + c % d)] =
          ei::from_bf16(row[static_cast<size_t>(c)]);
  }
  return {bench.backend, shape, ei::measure_sketch(shape, keys)};
}

}  // namespace

int ei::bench::guarded(const std::function<void()>& work) {
  try {
    work();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
}

extern "C" {

const char* ei_error() { return last_error.c_str(); }

// Whether products are in fp8, and the cache.
void* ei_open(int fp8_math, int fp8_kv) {
  Bench* bench = nullptr;
  guarded([&] {
    bench = new Bench(fp8_math != 0 ? ei::Math::kFP8 : ei::Math::kBF16,
                      fp8_kv != 0 ? ei::DType::kFP8 : ei::DType::kBF16);
  });
  return bench;
}

// n of them whose GPUs share a model: what is done with one is done with all at the same time, each
// in a thread of its own.
int ei_open_ranks(int fp8, int n, void** handles) {
  return guarded([&] {
    ei::ThreadRanks(n).run([&](const std::shared_ptr<ei::Communicator>& ranks) {
      handles[ranks->rank()] =
          new Bench(fp8 != 0 ? ei::Math::kFP8 : ei::Math::kBF16, ei::DType::kBF16, ranks);
    });
  });
}

// The sum over the ranks of rows of activations, us of one: as it is, or as one of a graph's.
int ei_all_reduce(void* handle, int64_t rows, int64_t cols, int graph, int repeat, double* us) {
  return guarded([&] {
    auto& bench = *static_cast<Bench*>(handle);
    const ei::Buffer x(bench.backend, rows * cols * 2);
    EI_CUDA(cudaMemsetAsync(x.data(), 0, static_cast<size_t>(x.bytes()), bench.backend.stream()));
    const auto sums = [&] {
      for (int i = 0; i < repeat; ++i)
        bench.backend.run(ei::AllReduce{act_of(x.data(), rows, cols)});
    };
    Stopwatch watch(bench.backend.stream());
    for (int i = 0; i < 2; ++i) {
      watch.start();
      graph != 0 ? bench.backend.repeat(sums) : sums();
      watch.stop();
      *us = watch.ms() * 1e3 / repeat;
    }
  });
}

int ei_use_beside(void* handle, int use) {
  return guarded([&] { static_cast<Bench*>(handle)->backend.use_beside(use != 0); });
}

void ei_close(void* handle) { delete static_cast<Bench*>(handle); }

struct PrefillResult {
  double append_ms, select_ms, attend_ms;  // of all chunks
  double estimate_ms;                      // of select_ms, the estimate by sketches
  double kept_share;                       // attended pairs over dense ones
};

// Attention of one layer over a prompt of n tokens, chunk by chunk as the engine reads it: q_ptr
// and out_ptr [n, n_heads * d], k_ptr and v_ptr [n, n_kv_heads * d]. alpha 0: every budget is the
// base. Chunks before row `from` are appended and attend to nothing.
int ei_prefill(void* handle, int64_t n, int64_t from, int64_t chunk_rows, int64_t n_heads,
               int64_t n_kv_heads, int64_t d, const char* policy_name, float base, float alpha,
               const void* q_ptr, const void* k_ptr, const void* v_ptr, void* out_ptr,
               PrefillResult* result) {
  return guarded([&] {
    auto& bench = *static_cast<Bench*>(handle);
    ei::PrefillPolicy policy = policy_of(policy_name, base, alpha);
    policy.dense_layers = 0;
    const bool is_sketch = policy.estimate == ei::Estimate::kSketch;
    // What an estimate costs that the engine would do without is measured too.
    if (is_sketch) policy.threshold_len = ei::PrefillPolicy::sketch().threshold_len;
    const ei::KvShape shape = {.n_layers = 1,
                               .n_kv_heads = n_kv_heads,
                               .layout = bench.layout(d, is_sketch ? 0 : policy.block),
                               .max_tokens = n};
    ei::PagePool pool(bench.backend, shape.layout.bytes());
    ei::KvCache cache(bench.backend, pool, shape);
    ei::PrefillPlan plan(bench.backend, policy,
                         {.n_layers = 1,
                          .n_heads = n_heads,
                          .n_kv_heads = n_kv_heads,
                          .head_dim = d,
                          .max_tokens = n,
                          .page = shape.layout.rows,
                          .chunk = chunk_rows});
    plan.begin(n, 0);
    std::optional<ei::Sketch> sketch;
    const Act q = act_of(q_ptr, n, n_heads * d), k = act_of(k_ptr, n, n_kv_heads * d);
    const Act v = act_of(v_ptr, n, n_kv_heads * d), out = act_of(out_ptr, n, n_heads * d);
    Stopwatch append(bench.backend.stream()), select(bench.backend.stream()),
        attend(bench.backend.stream()), estimate(bench.backend.stream());
    if (is_sketch) plan.use(&sketch.emplace(sketch_of(bench, k, {1, n_kv_heads, d})));
    const int64_t n_segments = (n + policy.segment - 1) / policy.segment;
    const int64_t chunk_segments = std::min(n, chunk_rows) / policy.segment;
    const ei::DeviceArray<float, 3> mass(
        bench.backend, {n_kv_heads, is_sketch ? chunk_segments : 0, n / policy.block}),
        entropy(bench.backend, {n_segments, 1, n_kv_heads});
    const ei::DeviceArray<float, 2> own(bench.backend, {n_kv_heads, chunk_segments});
    *result = {};
    for (int64_t at = 0; at < n;) {
      const ei::Chunk chunk = plan.next(at, chunk_rows);
      cache.reserve(chunk.size);
      append.start();
      cache.append(0, k.slice(at, chunk.size), v.slice(at, chunk.size));
      append.stop();
      if (at < from) {
        cache.advance(chunk.size);
        at += chunk.size;
        continue;
      }
      estimate.start();
      if (is_sketch)
        bench.backend.run(ei::EstimateMass{.estimate = policy.estimate,
                                           .q = q.slice(at, chunk.size),
                                           .begin = at,
                                           .segment = policy.segment,
                                           .block = policy.block,
                                           .scale = 1 / std::sqrt(static_cast<float>(d)),
                                           .basis = sketch->layer(0),
                                           .dense_before = policy.threshold_len / policy.segment,
                                           .dense_from = (n - policy.dense_tail) / policy.segment,
                                           .kv = cache.layer(0),
                                           .mass = mass.view(),
                                           .own = own.view(),
                                           .entropy = entropy.view()});
      estimate.stop();
      select.start();
      const ei::Selection seen = plan.select(0, chunk, q.slice(at, chunk.size), cache.layer(0));
      select.stop();
      attend.start();
      bench.backend.run(ei::SparseAttention{.q = q.slice(at, chunk.size),
                                            .kv = cache.layer(0),
                                            .begin = at,
                                            .segment = policy.segment,
                                            .block = policy.block,
                                            .selection = seen,
                                            .scale = 1 / std::sqrt(static_cast<float>(d)),
                                            .out = out.slice(at, chunk.size)});
      attend.stop();
      result->append_ms += append.ms();
      result->select_ms += select.ms();
      result->attend_ms += attend.ms();
      result->estimate_ms += estimate.ms();
      cache.advance(chunk.size);
      at += chunk.size;
    }
    const ei::PrefillStats stats = plan.stats();
    result->kept_share = stats.attended_pairs / stats.dense_pairs;
  });
}

// What a prefix of n tokens of a model of this shape takes to be remembered and to be restored into
// another cache: medians of `repeat`, host and device. from_host: the device's memory has no room
// for what is remembered, so that it goes to the host's and comes from there. Pages hold nothing:
// they are not looked into. `bytes`: of the prefix.
int ei_restore(void* handle, const char* shape_name, int64_t n, int from_host, int repeat,
               double* remember_ms, double* restore_ms, double* bytes) {
  return guarded([&] {
    auto& bench = *static_cast<Bench*>(handle);
    const ei::ModelConfig config = ei::named_shape(shape_name);
    const ei::PrefillPolicy policy;
    const ei::KvShape shape = {.n_layers = config.n_layers,
                               .n_kv_heads = config.n_kv_heads,
                               .layout = bench.layout(config.head_dim, policy.block),
                               .max_tokens = n};
    ei::PagePool pool(bench.backend, shape.layout.bytes());
    ei::KvCache read(bench.backend, pool, shape);
    const ei::PrefillPlan plan(bench.backend, policy,
                               {.n_layers = config.n_layers,
                                .n_heads = config.n_heads,
                                .n_kv_heads = config.n_kv_heads,
                                .head_dim = config.head_dim,
                                .max_tokens = n,
                                .page = policy.segment,
                                .chunk = policy.segment});
    read.reserve(n);
    std::vector<int32_t> tokens(static_cast<size_t>(n));
    std::iota(tokens.begin(), tokens.end(), 0);
    bench.wait();
    *bytes = double(shape.pages(n)) * double(pool.page_bytes());
    std::optional<ei::PagePool> host;
    if (from_host != 0)
      host.emplace(*bench.backend.host_memory(), pool.page_bytes(), static_cast<int64_t>(*bytes));
    std::vector<double> remembering, restoring;
    for (int i = 0; i < repeat; ++i) {
      bench.wait();
      ei::PrefixCache prefixes(bench.backend, host ? 0 : INT64_MAX, host ? &*host : nullptr);
      auto start = Clock::now();
      prefixes.remember(tokens, n, n, policy, read, plan.entropies(), {});
      while (host && prefixes.bytes() > 0)  // it leaves by and by
        prefixes.remember(tokens, n, n, policy, read, plan.entropies(), {});
      if (host) bench.backend.host_memory()->await();
      if (host) bench.wait();
      remembering.push_back(ms_since(start));
      ei::KvCache restored(bench.backend, pool, shape);
      bench.wait();
      start = Clock::now();
      std::vector<int64_t> asked;
      prefixes.restore(tokens, n, policy, restored, plan.entropies(), asked);
      bench.wait();
      restoring.push_back(ms_since(start));
    }
    *remember_ms = median(remembering);
    *restore_ms = median(restoring);
  });
}

int ei_load(void* handle, const char* shape) {
  return guarded([&] {
    auto& bench = *static_cast<Bench*>(handle);
    bench.model = std::make_unique<ei::Model>(
        ei::Model::random(bench.backend, ei::named_shape(shape), /*seed=*/1));
    bench.sketch.reset();
    bench.wait();
  });
}

struct ModelResult {
  double first_token_ms;  // prompt to token
  double compress_ms;
  StepTimes full, steps;  // before the cache is compressed, and behind it
  double attended_share;
};

// Reads a random prompt and decodes n_full tokens with the full cache, then n_steps. budget 0: it
// stays full. The sketch of a policy that needs one is made before the clock is started.
int ei_generate(void* handle, int64_t n, int64_t chunk_rows, const char* policy_name,
                int64_t budget, int n_full, int n_steps, ModelResult* result) {
  return guarded([&] {
    auto& bench = *static_cast<Bench*>(handle);
    const ei::ModelConfig& config = bench.model->config();
    const ei::PrefillPolicy policy = policy_of(policy_name, 2048, 0.5f);
    const bool has_bounds = policy.estimate == ei::Estimate::kBounds && !policy.is_dense();
    ei::DecodePolicy decode = ei::DecodePolicy::full();
    if (budget > 0) {
      decode = {};
      decode.budget = budget;
      decode.gap = -1;
    }
    const int64_t most = n + 2 * (n_full + n_steps) + 1;
    const ei::KvShape shape = {
        .n_layers = config.n_layers,
        .n_kv_heads = config.n_kv_heads,
        .layout = bench.layout(config.head_dim, has_bounds ? policy.block : 0),
        .max_tokens = most};
    ei::PagePool pool(bench.backend, shape.layout.bytes());
    ei::KvCache cache(bench.backend, pool, shape);
    ei::PrefillPlan plan(bench.backend, policy,
                         {.n_layers = config.n_layers,
                          .n_heads = config.n_heads,
                          .n_kv_heads = config.n_kv_heads,
                          .head_dim = config.head_dim,
                          .max_tokens = most,
                          .page = shape.layout.rows,
                          .chunk = chunk_rows});
    ei::Activations act(bench.backend, config, plan.chunk_rows(n), 1);
    ei::QueryWindow window(bench.backend, config.n_layers, ei::Compressor::window_rows(decode),
                           config.n_heads * config.head_dim);
    ei::Compressor compressor(decode, n);
    std::vector<int32_t> tokens;
    uint32_t state = 7;
    for (int64_t i = 0; i < n; ++i) {
      state = state * 1664525 + 1013904223;
      tokens.push_back(static_cast<int32_t>(state % static_cast<uint32_t>(config.vocab_size)));
    }
    ei::Sampler sampler(bench.backend, config.vocab_size, 1);
    ei::SamplerState greedy(bench.backend, {}, {}, 2 * (n_full + n_steps) + 1, {});
    const ei::Sampler::Row row = {.state = &greedy};
    plan.begin(n, 0);
    if (plan.wants_sketch() && !bench.sketch)
      bench.sketch.emplace(bench.backend, ei::sketch_shape(config),
                           ei::measure_sketch(ei::sketch_shape(config),
                                              ei::read_keys(bench.backend, *bench.model,
                                                            std::span(tokens).first(1024))));
    if (bench.sketch) plan.use(&*bench.sketch);
    bench.wait();

    const auto start = Clock::now();
    plan.begin(n, 0);
    while (cache.n_tokens() < n)
      ei::prefill_chunk(bench.backend, *bench.model, act, cache, window, plan, tokens,
                        ei::Hidden::kLast);
    int32_t token = sampler.draw(bench.model->logits(act, act.rows() - 1, 1), {&row, 1})[0];
    result->first_token_ms = ms_since(start);
    const ei::PrefillStats stats = plan.stats();
    result->attended_share = stats.attended_pairs / stats.dense_pairs;

    if (n_full > 0)
      result->full = time_steps(bench, act, {{&cache, &window, token}}, sampler, {&row, 1}, n_full);
    const auto compressing = Clock::now();
    if (compressor.due(cache)) compressor.run(bench.backend, cache, window, config.n_heads);
    bench.wait();
    result->compress_ms = ms_since(compressing);

    result->steps = time_steps(bench, act, {{&cache, &window, token}}, sampler, {&row, 1}, n_steps);
  });
}

// What it takes to compress the caches of all layers of a model of this shape, of n tokens each,
// right after the prompt: medians of `repeat`, of the host alone and until the device is done. Keys
// and values are k_ptr [n, n_kv_heads * d], the window's queries q_ptr [window, n_heads * d].
int ei_compress(void* handle, const char* shape_name, int64_t n, int64_t budget, int repeat,
                const void* q_ptr, const void* k_ptr, double* host_ms, double* ms) {
  return guarded([&] {
    auto& bench = *static_cast<Bench*>(handle);
    const ei::ModelConfig config = ei::named_shape(shape_name);
    ei::DecodePolicy policy;
    policy.budget = budget;
    policy.gap = -1;
    const ei::KvShape shape = {.n_layers = config.n_layers,
                               .n_kv_heads = config.n_kv_heads,
                               .layout = bench.layout(config.head_dim, ei::PrefillPolicy{}.block),
                               .max_tokens = n};
    ei::PagePool pool(bench.backend, shape.layout.bytes());
    ei::QueryWindow window(bench.backend, config.n_layers, ei::Compressor::window_rows(policy),
                           config.n_heads * config.head_dim);
    const Act k = act_of(k_ptr, n, config.n_kv_heads * config.head_dim);
    std::vector<double> host, all;
    for (int i = 0; i < repeat; ++i) {
      ei::KvCache cache(bench.backend, pool, shape);
      cache.reserve(n);
      for (int l = 0; l < config.n_layers; ++l) {
        cache.append(l, k, k);
        window.save(l, act_of(q_ptr, window.n_rows(), config.n_heads * config.head_dim),
                    n - window.n_rows());
      }
      cache.advance(n);
      bench.wait();
      const auto start = Clock::now();
      ei::Compressor(policy, n).run(bench.backend, cache, window, config.n_heads);
      host.push_back(ms_since(start));
      bench.wait();
      all.push_back(ms_since(start));
    }
    *host_ms = median(host);
    *ms = median(all);
  });
}

// A step of the loaded model for n_sequences together, whose caches hold n rows each: k_ptr
// [n, n_kv_heads * d], for keys and values of every layer.
int ei_decode_batch(void* handle, int64_t n, int64_t n_sequences, int n_steps, const void* k_ptr,
                    StepTimes* result) {
  return guarded([&] {
    auto& bench = *static_cast<Bench*>(handle);
    const ei::ModelConfig& config = bench.model->config();
    const ei::KvShape shape = {.n_layers = config.n_layers,
                               .n_kv_heads = config.n_kv_heads,
                               .layout = bench.layout(config.head_dim),
                               .max_tokens = n + 2 * n_steps};
    ei::PagePool pool(bench.backend, shape.layout.bytes());
    ei::QueryWindow window(bench.backend, config.n_layers, 0, 0);
    ei::Activations act(bench.backend, config, n_sequences, n_sequences);
    ei::Sampler sampler(bench.backend, config.vocab_size, n_sequences);
    const Act k = act_of(k_ptr, n, config.n_kv_heads * config.head_dim);
    std::vector<std::unique_ptr<ei::KvCache>> caches;
    std::vector<std::unique_ptr<ei::SamplerState>> states;
    std::vector<ei::Running> running;
    std::vector<ei::Sampler::Row> rows;
    for (int64_t i = 0; i < n_sequences; ++i) {
      caches.push_back(std::make_unique<ei::KvCache>(bench.backend, pool, shape));
      caches.back()->reserve(n);
      for (int l = 0; l < config.n_layers; ++l) caches.back()->append(l, k, k);
      caches.back()->advance(n);
      states.push_back(std::make_unique<ei::SamplerState>(bench.backend, ei::SamplingParams{},
                                                          std::span<const int32_t>{}, 2 * n_steps,
                                                          ei::SamplerState::Options{}));
      running.push_back({caches.back().get(), &window, static_cast<int32_t>(i)});
      rows.push_back({.state = states.back().get(), .logits_row = i});
    }
    bench.wait();
    *result = time_steps(bench, act, running, sampler, rows, n_steps);
  });
}

}  // extern "C"
