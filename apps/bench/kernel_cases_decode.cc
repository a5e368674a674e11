#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "apps/bench/kernel_cases.h"

namespace ei::bench {
namespace {

constexpr const char* kName = "decode attention";
constexpr const char* kVotes = "votes";
constexpr const char* kPooled = "votes, pooled by 21";
constexpr int64_t kHeads = 32;  // of Llama-3.2-1B
constexpr int64_t kKvHeads = 8;
constexpr int64_t kHeadDim = 64;

KvShape shape(int64_t n_layers, int64_t n_tokens) {
  return {.n_layers = n_layers,
          .n_kv_heads = kKvHeads,
          .layout = {.head_dim = kHeadDim},
          .max_tokens = n_tokens};
}

// Head h of layer l keeps its last 512 to 1,536 rows, 1,024 on average.
void compact(Backend& backend, KvCache& cache) {
  const int64_t n = cache.n_tokens();
  const DeviceArray<int32_t, 2> rows(backend, {kKvHeads, n});
  const DeviceArray<int32_t, 1> count(backend, {kKvHeads});
  std::vector<int32_t> all(static_cast<size_t>(n));
  for (int l = 0; l < cache.shape().n_layers; ++l) {
    std::vector<int32_t> counts;
    for (int64_t h = 0; h < kKvHeads; ++h) {
      const auto kept =
          static_cast<int32_t>(512 + 1024 * ((3 * h + l) % kKvHeads) / (kKvHeads - 1));
      std::iota(all.begin(), all.begin() + kept, static_cast<int32_t>(n) - kept);
      backend.copy_in(rows.view()[h].data, all.data(), kept * 4);
      counts.push_back(kept);
    }
    backend.copy_in(count.view().data, counts.data(), kKvHeads * 4);
    cache.compact(l, {rows.view(), count.view()}, counts);
  }
}

// One query to every layer in turn, as many layers as no cache holds.
void bench_layers(Backend& backend, KernelBench& bench, BenchData& data, const KvCache& cache,
                  const std::string& size) {
  const ActArray q = data.act(1, kHeads * kHeadDim);
  const ActArray out(backend, 1, kHeads * kHeadDim);
  const auto n_layers = static_cast<int>(cache.shape().n_layers);
  double rows = 0;
  for (int l = 0; l < n_layers; ++l)
    for (int64_t h = 0; h < kKvHeads; ++h) rows += double(cache.rows(l, h));
  bench.measure({.kernel = kName,
                 .size = size,
                 .bytes = rows * 2 * double(cache.shape().layout.row_bytes()),
                 .limit = KernelResult::Limit::kMemory,
                 .target = 0.8},
                [&] {
                  for (int l = 0; l < n_layers; ++l) {
                    const KvLayer kv = cache.layer(l);
                    backend.run(DecodeAttention{
                        .q = q.act(), .kv = {&kv, 1}, .scale = 0.125f, .out = out.act()});
                  }
                });
}

}  // namespace

void bench_decode_attention(Backend& backend, KernelBench& bench) {
  if (!bench.wants(kName)) return;
  {
    BenchData data(backend);
    PagePool pool(backend, shape(4, 32768).layout.bytes());
    const KvCache cache = data.cache(pool, shape(4, 32768), 32768);
    bench_layers(backend, bench, data, cache, "32768 rows, 32/8 heads, d 64");
  }
  BenchData data(backend);
  PagePool pool(backend, shape(128, 2048).layout.bytes());
  KvCache cache = data.cache(pool, shape(128, 2048), 2048);
  compact(backend, cache);
  bench_layers(backend, bench, data, cache, "compacted to 512..1536 rows, 32/8 heads, d 64");
}

// As the default policy has it, of one layer.
void bench_votes(Backend& backend, KernelBench& bench) {
  if (!bench.wants(kVotes) && !bench.wants(kPooled)) return;
  constexpr int64_t kRows = 32768, kWindow = 32;
  BenchData data(backend);
  PagePool pool(backend, shape(1, kRows).layout.bytes());
  const KvCache cache = data.cache(pool, shape(1, kRows), kRows);
  const ActArray window = data.act(kWindow, kHeads * kHeadDim);
  const DeviceArray<float, 2> votes(backend, {kKvHeads, kRows}), pooled(backend, {kKvHeads, kRows});
  const DeviceArray<int32_t, 1> n_votes(
      backend, std::vector<int32_t>(kKvHeads, static_cast<int32_t>(kRows - kWindow)));
  const auto vote = [&] {
    backend.run(Vote{.window = window.act(),
                     .n_queries = kWindow,
                     .kv = cache.layer(0),
                     .scale = 0.125f,
                     .votes = votes.view()});
  };
  vote();  // there is something to pool
  const std::string size = "32768 rows, 32/8 heads, d 64";
  if (bench.wants(kVotes))
    bench.measure(
        {.kernel = kVotes, .size = size, .flops = 2.0 * kHeads * kWindow * kHeadDim * kRows}, vote);
  if (bench.wants(kPooled))
    bench.measure({.kernel = kPooled,
                   .size = size,
                   .bytes = 4.0 * kKvHeads * kRows,
                   .limit = KernelResult::Limit::kMemory},
                  [&] {
                    backend.run(PoolVotes{.votes = votes.view(),
                                          .n_votes = n_votes.view(),
                                          .pooling = Pooling::kBoth,
                                          .kernel = 21,
                                          .out = pooled.view()});
                  });
}

}  // namespace ei::bench
