#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/bench/kernel_cases.h"
#include "ei/prefill/plan.h"

namespace ei::bench {
namespace {

using Limit = KernelResult::Limit;

constexpr const char* kDenseName = "prefill attention, dense";
constexpr const char* kSparseName = "prefill attention, selected";
constexpr const char* kSketchName = "shares by sketches, selection";
constexpr int64_t kSegment = 512;
constexpr int64_t kBlock = 8;
constexpr int64_t kChunk = 2048;   // queries: the last of the keys
constexpr int64_t kBudget = 2048;  // tokens of the past that are selected
constexpr int64_t kKvHeads = 2;

// Past blocks of every (head, segment): all of them, or a random `count` of them.
struct SelectionArray {
  SelectionArray(Backend& backend, int64_t begin, int32_t count)
      : count_of(backend, {kKvHeads, kChunk / kSegment}),
        index(backend, {kKvHeads, kChunk / kSegment, std::max<int64_t>(count, 1)}) {
    std::vector<int32_t> counts(static_cast<size_t>(count_of.view().size()), count);
    backend.copy_in(count_of.view().data, counts.data(), count_of.view().size() * 4);
    if (count == kAllBlocks) return;
    std::vector<int32_t> blocks;
    uint64_t state = 1;
    for (int64_t h = 0; h < kKvHeads; ++h) {
      for (int64_t s = 0; s < kChunk / kSegment; ++s) {
        // Picks ascending: block b with the chance that the rest needs.
        const int64_t n = (begin + s * kSegment) / kBlock;
        int64_t left = count;
        for (int64_t b = 0; b < n; ++b) {
          state = state * 6364136223846793005u + 1442695040888963407u;
          if (static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(n - b)) >= left) continue;
          blocks.push_back(static_cast<int32_t>(b));
          --left;
        }
      }
    }
    backend.copy_in(index.view().data, blocks.data(), static_cast<int64_t>(blocks.size()) * 4);
  }

  Selection view() const { return {count_of.view(), index.view()}; }

  DeviceArray<int32_t, 2> count_of;
  DeviceArray<int32_t, 3> index;
};

// Which blocks the policy `entropy` reads for the chunk's queries, by directions that are as good
// as any; the prompt goes on behind them, so that no segment is dense.
class SketchSelection {
 public:
  SketchSelection(Backend& backend, int64_t begin, int64_t d)
      : sketch_(backend, shape(d), values(shape(d))),
        plan_(backend, policy(),
              {.n_layers = 1,
               .n_kv_heads = kKvHeads,
               .head_dim = d,
               .max_tokens = begin + kChunk + 1,
               .page = kSegment,
               .chunk = kChunk}),
        chunk_{begin, kChunk} {
    plan_.use(&sketch_);
    plan_.begin(begin + kChunk + 1, begin);
  }

  void run(const Act& q, const KvLayer& kv) { plan_.select(0, chunk_, q, kv); }

 private:
  static PrefillPolicy policy() {
    PrefillPolicy policy = PrefillPolicy::sketch();
    policy.threshold_len = policy.dense_tail = 0;
    return policy;
  }
  static Sketch::Shape shape(int64_t d) {
    return {.n_layers = 1, .n_kv_heads = kKvHeads, .head_dim = d};
  }
  static std::vector<float> values(const Sketch::Shape& shape) {
    std::vector<float> x(static_cast<size_t>(shape.size()));
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(float(i * i));
    return x;
  }

  Sketch sketch_;
  PrefillPlan plan_;
  Chunk chunk_;
};

// Query-key pairs of one query head.
double pairs(int64_t begin, int32_t count) {
  double sum = 0;
  for (int64_t i = 0; i < kChunk; ++i) {
    const int64_t own = i % kSegment + 1;
    sum += double(own + (count == kAllBlocks ? begin + i / kSegment * kSegment : count * kBlock));
  }
  return sum;
}

}  // namespace

void bench_prefill_attention(Backend& backend, KernelBench& bench) {
  if (!bench.wants(kDenseName) && !bench.wants(kSparseName) && !bench.wants(kSketchName)) return;
  for (const int64_t d : {64, 128}) {
    for (const int64_t keys : {8192, 32768}) {
      const int64_t begin = keys - kChunk;
      const KvShape shape = {.n_layers = 1,
                             .n_kv_heads = kKvHeads,
                             .layout = {.head_dim = d, .rows = kSegment},
                             .max_tokens = keys};
      BenchData data(backend);
      PagePool pool(backend, shape.layout.bytes());
      const KvCache cache = data.cache(pool, shape, keys);
      const SelectionArray all(backend, begin, kAllBlocks);
      const SelectionArray some(backend, begin, static_cast<int32_t>(kBudget / kBlock));
      SketchSelection sketches(backend, begin, d);
      for (const int64_t group : {1, 4, 7}) {
        const int64_t width = kKvHeads * group * d;
        const ActArray q = data.act(kChunk, width);
        const ActArray out(backend, kChunk, width);
        const auto run = [&](const SelectionArray& selection) {
          backend.run(SparseAttention{.q = q.act(),
                                      .kv = cache.layer(0),
                                      .begin = begin,
                                      .segment = kSegment,
                                      .block = kBlock,
                                      .selection = selection.view(),
                                      .scale = 1 / std::sqrt(float(d)),
                                      .out = out.act()});
        };
        const auto flops = [&](int32_t count) {
          return 4 * double(d) * double(kKvHeads * group) * pairs(begin, count);
        };
        const std::string size = fmt::format("{} keys, d {}, groups of {}", keys, d, group);
        bench.measure({.kernel = kDenseName,
                       .size = size,
                       .flops = flops(kAllBlocks),
                       .limit = Limit::kPeak,
                       .target = bench.has_tiles() ? 0.3 : 0.6},
                      [&] { run(all); });
        bench.measure({.kernel = kSparseName,
                       .size = size,
                       .flops = flops(static_cast<int32_t>(kBudget / kBlock)),
                       .limit = Limit::kDense,
                       .target = 0.85},
                      [&] { run(some); });
        // Against the time of the attention that it decides on: a tenth of it, ten times the rate.
        bench.measure({.kernel = kSketchName,
                       .size = size,
                       .flops = flops(kAllBlocks),
                       .limit = Limit::kDense,
                       .target = 10},
                      [&] { sketches.run(q.act(), cache.layer(0)); });
      }
    }
  }
}

}  // namespace ei::bench
