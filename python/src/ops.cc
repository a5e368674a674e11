#include <algorithm>
#include <cmath>
#include <mutex>

#include "ei/base/fail.h"
#include "ei/cache/kv_cache.h"
#include "ei/engine/make_backend.h"
#include "ei/ops/shapes.h"
#include "ei/prefill/plan.h"
#include "python/src/bind.h"

// Ops on arrays in memory, of one sequence: rows [n, heads, d] of float, as activations are. Keys
// and values are copied into pages as they are used, in the arrays' own type, so that nothing is
// rounded: next to attention the copy takes no time.
namespace ei::python {
namespace {

using Rows = Array<const float, 3>;

// All calls share one CPU backend for each of the ways to compute products, one call at a time.
class Cpu {
 public:
  explicit Cpu(bool bf16) : guard_(mutex()), backend_(instance(bf16)) {}
  Backend& backend() const { return backend_; }

 private:
  static std::mutex& mutex() {
    static std::mutex mutex;
    return mutex;
  }
  static Backend& instance(bool bf16) {
    static std::unique_ptr<Backend> backends[2];
    std::unique_ptr<Backend>& backend = backends[bf16];
    if (!backend)
      backend = make_backend({.device = Device::kCpu, .math = bf16 ? Math::kBF16 : Math::kF32});
    return *backend;
  }
  std::lock_guard<std::mutex> guard_;
  Backend& backend_;
};

template <class T>
Act act(const nb::ndarray<T, nb::shape<-1, -1, -1>, nb::c_contig, nb::device::cpu>& rows) {
  const auto n = static_cast<int64_t>(rows.shape(0));
  const auto cols = static_cast<int64_t>(rows.shape(1) * rows.shape(2));
  return {const_cast<float*>(rows.data()), n, cols, sizeof(float)};
}

template <class T>
void expect_rows(const char* what, const T& rows, size_t n, size_t heads, size_t d) {
  require(rows.shape(0) == n && rows.shape(1) == heads && rows.shape(2) == d,
          "{} is [{}, {}, {}], expected [{}, {}, {}]: tokens, heads, head_dim", what, rows.shape(0),
          rows.shape(1), rows.shape(2), n, heads, d);
}

// Pages for one layer's keys and values.
class LayerCache {
 public:
  LayerCache(Backend& backend, int64_t n_kv_heads, const PageLayout& layout, int64_t max_tokens)
      : pool_(backend, layout.bytes()),
        cache_(backend, pool_, {1, n_kv_heads, layout, max_tokens}) {
    cache_.reserve(max_tokens);
  }
  KvLayer append(const Act& k, const Act& v) {
    cache_.append(0, k, v);
    return cache_.layer(0);
  }
  void rewind() { cache_.rewind(); }

 private:
  PagePool pool_;
  KvCache cache_;
};

// What was chosen for a layer: of each KV head and segment how many past blocks (kAllBlocks: all),
// which ones if that was wanted, and the entropy in nats of what they were chosen by (NaN: the
// layer is dense).
class Choice {
 public:
  Choice(int64_t n_kv_heads, int64_t n_tokens, int64_t segment, int64_t block)
      : n_heads_(n_kv_heads),
        n_tokens_(n_tokens),
        segment_(segment),
        block_(block),
        n_segments_((n_tokens + segment - 1) / segment),
        count_(static_cast<size_t>(n_heads_ * n_segments_), kAllBlocks),
        entropy_(count_.size(), NAN),
        index_(count_.size()) {}

  void add(const Chunk& chunk, const PrefillPlan::Choice& seen, bool with_blocks) {
    for (int64_t h = 0; h < n_heads_; ++h)
      for (int64_t i = 0; i < seen.selection.count.dim(1); ++i) {
        const auto at = static_cast<size_t>(h * n_segments_ + chunk.begin / segment_ + i);
        count_[at] = seen.selection.count[h][i];
        entropy_[at] = seen.entropy[i][seen.entropy_layer][h];
        if (const int32_t* first = seen.selection.index[h][i].data; with_blocks && count_[at] > 0)
          index_[at].assign(first, first + count_[at]);
      }
  }

  int64_t segment() const { return segment_; }
  int64_t block() const { return block_; }
  auto count() const { return array<int32_t, 2>(std::vector(count_), rows()); }
  auto entropy() const { return array<float, 2>(std::vector(entropy_), rows()); }
  // [n_kv_heads, n_segments, the most], the first `count` of each ascending.
  auto index() const {
    size_t most = 0;
    for (const auto& of_segment : index_) most = std::max(most, of_segment.size());
    std::vector<int32_t> all(index_.size() * most, 0);
    for (size_t i = 0; i < index_.size(); ++i)
      std::copy(index_[i].begin(), index_[i].end(), all.begin() + static_cast<ptrdiff_t>(i * most));
    return array<int32_t, 3>(std::move(all), {rows()[0], rows()[1], most});
  }
  // Attended pairs of query and key over those of dense attention.
  double density() const {
    double attended = 0, dense = 0;
    for (int64_t i = 0; i < std::ssize(count_); ++i) {
      const int64_t past = i % n_segments_ * segment_;
      const double n = double(std::min(segment_, n_tokens_ - past)), own = n * (n + 1) / 2;
      const int32_t count = count_[static_cast<size_t>(i)];
      attended += n * double(count == kAllBlocks ? past : count * block_) + own;
      dense += n * double(past) + own;
    }
    return attended / dense;
  }

 private:
  std::array<size_t, 2> rows() const {
    return {static_cast<size_t>(n_heads_), static_cast<size_t>(n_segments_)};
  }

  int64_t n_heads_, n_tokens_, segment_, block_, n_segments_;
  std::vector<int32_t> count_;  // [n_heads, n_segments], as all of these
  std::vector<float> entropy_;
  std::vector<std::vector<int32_t>> index_;
};

// Pages as the engine has them.
int64_t page_of(int64_t segment) { return (512 + segment - 1) / segment * segment; }

// Reads a prompt under a policy, layer by layer: the engine's own plan, for those who compute
// queries and keys themselves.
class Reader {
 public:
  Reader(const Policy& policy, int64_t n_layers, int64_t n_heads, int64_t n_kv_heads,
         int64_t head_dim, int64_t n_tokens, bool bf16)
      : shape_{.n_layers = n_layers,
               .n_heads = n_heads,
               .n_kv_heads = n_kv_heads,
               .head_dim = head_dim,
               .max_tokens = n_tokens,
               .page = page_of(policy.prefill().segment),
               .chunk = 2048},
        bf16_(bf16) {
    require(n_layers >= 1 && n_heads >= 1 && n_kv_heads >= 1 && head_dim >= 1 && n_tokens >= 1,
            "{} tokens, {} layers, {} heads, {} KV heads of size {}: expected 1 or more of each",
            n_tokens, n_layers, n_heads, n_kv_heads, head_dim);
    const Cpu cpu(bf16);
    plan_.emplace(cpu.backend(), policy.prefill(), shape_);
    cache_.emplace(cpu.backend(), n_kv_heads,
                   PageLayout{.dtype = bf16 ? DType::kBF16 : DType::kF32,
                              .head_dim = head_dim,
                              .rows = shape_.page,
                              .block = policy.prefill().block},
                   n_tokens);
    plan_->begin(n_tokens, 0);
    for (int64_t at = 0; at < n_tokens; at += chunks_.back().size)
      chunks_.push_back(plan_->next(at, INT64_MAX));
    directions_.resize(static_cast<size_t>(sketch_shape(n_layers).size()));
  }

  // Chooses a layer's blocks for q [n_tokens, n_heads, d] among k and v [n_tokens, n_kv_heads, d]
  // and, if there is an `out` [n_tokens, n_heads, d], attends to them.
  Choice read(int layer, const Rows& q, const Rows& k, const Rows& v,
              const std::optional<Array<float, 3>>& out, bool with_blocks) {
    require(layer >= 0 && layer < shape_.n_layers, "layer is {}, expected 0 to {}", layer,
            shape_.n_layers - 1);
    const auto n = static_cast<size_t>(shape_.max_tokens), d = static_cast<size_t>(shape_.head_dim);
    expect_rows("q", q, n, static_cast<size_t>(shape_.n_heads), d);
    expect_rows("k", k, n, static_cast<size_t>(shape_.n_kv_heads), d);
    expect_rows("v", v, n, static_cast<size_t>(shape_.n_kv_heads), d);
    if (out) expect_rows("out", *out, n, static_cast<size_t>(shape_.n_heads), d);
    const nb::gil_scoped_release free;
    const Cpu cpu(bf16_);
    if (plan_->wants_sketch()) find_directions(cpu.backend(), layer, k);
    Choice choice(shape_.n_kv_heads, shape_.max_tokens, plan_->policy().segment,
                  plan_->policy().block);
    plan_->observe([&](int, const Chunk& chunk, const PrefillPlan::Choice& seen) {
      choice.add(chunk, seen, with_blocks);
    });
    for (const Chunk& chunk : chunks_) {
      const auto rows = [&](const auto& all) { return act(all).slice(chunk.begin, chunk.size); };
      const KvLayer kv = cache_->append(rows(k), rows(v));
      const Selection seen = plan_->select(layer, chunk, rows(q), kv);
      if (!out) continue;
      cpu.backend().run(SparseAttention{.q = rows(q),
                                        .kv = kv,
                                        .begin = chunk.begin,
                                        .segment = plan_->policy().segment,
                                        .block = plan_->policy().block,
                                        .selection = seen,
                                        .scale = 1 / std::sqrt(static_cast<float>(d)),
                                        .out = rows(*out)});
    }
    cache_->rewind();
    return choice;
  }

 private:
  Sketch::Shape sketch_shape(int64_t n_layers) const {
    return {.n_layers = n_layers, .n_kv_heads = shape_.n_kv_heads, .head_dim = shape_.head_dim};
  }

  // The directions that Estimate::kSketch goes by, of the prompt's own keys: of no more than the
  // engine takes of a text of its own, all over the prompt.
  void find_directions(Backend& backend, int layer, const Rows& k) {
    constexpr int64_t kKeys = 1024;
    const int64_t n = shape_.max_tokens, m = std::min(n, kKeys);
    std::vector<float> keys;
    for (int64_t h = 0; h < shape_.n_kv_heads; ++h)
      for (int64_t i = 0; i < m; ++i) {
        const float* key = k.data() + (i * n / m * shape_.n_kv_heads + h) * shape_.head_dim;
        keys.insert(keys.end(), key, key + shape_.head_dim);
      }
    const std::vector<float> values = measure_sketch(sketch_shape(1), keys);
    std::copy(values.begin(), values.end(), directions_.begin() + layer * std::ssize(values));
    sketch_.emplace(backend, sketch_shape(shape_.n_layers), directions_);
    plan_->use(&*sketch_);
  }

  PrefillPlan::Shape shape_;
  bool bf16_;
  std::optional<LayerCache> cache_;
  std::optional<PrefillPlan> plan_;
  std::vector<Chunk> chunks_;
  std::vector<float> directions_;  // of all layers, as far as they were read
  std::optional<Sketch> sketch_;
};

// Blocks that are not there would be read from memory that is not.
void expect_blocks(const Array<const int32_t, 2>& count, const Array<const int32_t, 3>& index,
                   size_t heads, size_t n_segments, int64_t first_segment, int64_t per_segment) {
  require(count.shape(0) == heads && count.shape(1) == n_segments,
          "count is [{}, {}], expected [{}, {}]: KV heads, segments", count.shape(0),
          count.shape(1), heads, n_segments);
  require(index.shape(0) == heads && index.shape(1) == n_segments,
          "index is [{}, {}, {}], expected [{}, {}, the most blocks]", index.shape(0),
          index.shape(1), index.shape(2), heads, n_segments);
  for (size_t i = 0; i < heads * n_segments; ++i) {
    const int64_t past = (first_segment + static_cast<int64_t>(i % n_segments)) * per_segment;
    const int32_t n = count.data()[i];
    const int32_t* const blocks = index.data() + i * index.shape(2);
    require(n == kAllBlocks ||
                (n >= 0 && n <= std::min<int64_t>(past, static_cast<int64_t>(index.shape(2)))),
            "count[{}, {}] is {}, expected -1 (all) or 0 to {}", i / n_segments, i % n_segments, n,
            std::min<int64_t>(past, static_cast<int64_t>(index.shape(2))));
    for (int32_t j = 0; j < n; ++j)
      require(blocks[j] >= 0 && blocks[j] < past && (j == 0 || blocks[j] > blocks[j - 1]),
              "index[{}, {}, {}] is {}, expected ascending blocks below {}, those before the "
              "segment",
              i / n_segments, i % n_segments, j, blocks[j], past);
  }
}

// Attention of the newest queries of a sequence, q and out [m, n_heads, d], to k and v [n,
// n_kv_heads, d]: to the past blocks of each segment that `count` and `index` name and, causally,
// to the segment itself; to all, if there are none.
void sparse_attention(const Rows& q, const Rows& k, const Rows& v, const Array<float, 3>& out,
                      const std::optional<Array<const int32_t, 2>>& count,
                      const std::optional<Array<const int32_t, 3>>& index, int64_t segment,
                      int64_t block, float scale, bool bf16) {
  require(k.shape(0) >= q.shape(0) && q.shape(0) >= 1 && k.shape(1) >= 1 && k.shape(2) >= 1 &&
              q.shape(1) % k.shape(1) == 0,
          "q is [{}, {}, {}] and k [{}, {}, {}], expected no more queries than keys and a whole "
          "number of heads for each KV head",
          q.shape(0), q.shape(1), q.shape(2), k.shape(0), k.shape(1), k.shape(2));
  require(segment >= 1 && block >= 1 && segment % block == 0,
          "segment is {}, expected a multiple of block, {}", segment, block);
  expect_rows("q", q, q.shape(0), q.shape(1), k.shape(2));
  expect_rows("v", v, k.shape(0), k.shape(1), k.shape(2));
  expect_rows("out", out, q.shape(0), q.shape(1), q.shape(2));
  const auto n = static_cast<int64_t>(k.shape(0)), heads = static_cast<int64_t>(k.shape(1));
  const int64_t begin = n - static_cast<int64_t>(q.shape(0)), first = begin / segment;
  const int64_t n_segments = (n + segment - 1) / segment - first;
  std::vector<int32_t> all(static_cast<size_t>(heads * n_segments), kAllBlocks);
  Selection seen = {.count = {all.data(), {heads, n_segments}}, .index = {}};
  if (count && index) {
    expect_blocks(*count, *index, k.shape(1), static_cast<size_t>(n_segments), first,
                  segment / block);
    seen.count.data = const_cast<int32_t*>(count->data());
    if (const auto most = static_cast<int64_t>(index->shape(2)); most > 0)
      seen.index = {const_cast<int32_t*>(index->data()), {heads, n_segments, most}};
  }
  const nb::gil_scoped_release free;
  const Cpu cpu(bf16);
  const PageLayout layout = {.dtype = bf16 ? DType::kBF16 : DType::kF32,
                             .head_dim = static_cast<int64_t>(k.shape(2)),
                             .rows = page_of(segment)};
  LayerCache cache(cpu.backend(), heads, layout, n);
  cpu.backend().run(SparseAttention{.q = act(q),
                                    .kv = cache.append(act(k), act(v)),
                                    .begin = begin,
                                    .segment = segment,
                                    .block = block,
                                    .selection = seen,
                                    .scale = scale,
                                    .out = act(out)});
}

// Scores of the blocks before each segment, [n_kv_heads, n_segments, blocks] with -inf for others,
// and their entropies, [n_kv_heads, n_segments].
nb::tuple block_scores(const Rows& q, const Rows& k, int64_t segment, int64_t block, float scale,
                       bool bf16) {
  require(segment >= 1 && block >= 1 && segment % block == 0,
          "segment is {}, expected a multiple of block, {}", segment, block);
  require(q.shape(0) >= 1 && k.shape(1) >= 1 && k.shape(2) >= 1, "there are no queries or keys");
  expect_rows("k", k, q.shape(0), k.shape(1), q.shape(2));
  const auto n = static_cast<int64_t>(q.shape(0)), heads = static_cast<int64_t>(k.shape(1));
  const int64_t n_segments = (n + segment - 1) / segment;
  const int64_t width = std::max<int64_t>(1, (n_segments - 1) * segment / block);
  std::vector<float> score(static_cast<size_t>(heads * n_segments * width), -INFINITY);
  std::vector<float> by_segment(static_cast<size_t>(heads * n_segments)),
      entropy(by_segment.size());
  {
    const nb::gil_scoped_release free;
    const Cpu cpu(bf16);
    const PageLayout layout = {.dtype = bf16 ? DType::kBF16 : DType::kF32,
                               .head_dim = static_cast<int64_t>(k.shape(2)),
                               .rows = page_of(segment),
                               .block = block};
    LayerCache cache(cpu.backend(), heads, layout, n);
    cpu.backend().run(ScoreBlocks{.q = act(q),
                                  .segment = segment,
                                  .scale = scale,
                                  .kv = cache.append(act(k), act(k)),
                                  .score = {score.data(), {heads, n_segments, width}},
                                  .entropy = {by_segment.data(), {n_segments, 1, heads}}});
  }
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t s = 0; s < n_segments; ++s)
      entropy[static_cast<size_t>(h * n_segments + s)] =
          by_segment[static_cast<size_t>(s * heads + h)];
  const auto dim = [](int64_t i) { return static_cast<size_t>(i); };
  return nb::make_tuple(
      array<float, 3>(std::move(score), {dim(heads), dim(n_segments), dim(width)}),
      array<float, 2>(std::move(entropy), {dim(heads), dim(n_segments)}));
}

// How much the newest queries q [w, n_heads, d] look at each key before them, of k [n, n_kv_heads,
// d]: [n_kv_heads, n - w].
auto vote(const Rows& q, const Rows& k, bool max_over_group, float scale, bool bf16) {
  require(k.shape(0) > q.shape(0) && q.shape(0) >= 1,
          "{} queries and {} keys, expected more keys than queries", q.shape(0), k.shape(0));
  require(k.shape(1) >= 1 && k.shape(2) >= 1 && scale > 0,
          "k is [{}, {}, {}] and scale {}, expected 1 head or more, and above 0", k.shape(0),
          k.shape(1), k.shape(2), scale);
  const auto n = static_cast<int64_t>(k.shape(0)), heads = static_cast<int64_t>(k.shape(1));
  const int64_t w = static_cast<int64_t>(q.shape(0));
  std::vector<float> votes(static_cast<size_t>(heads * (n - w)));
  {
    const nb::gil_scoped_release free;
    const Cpu cpu(bf16);
    const PageLayout layout = {.dtype = bf16 ? DType::kBF16 : DType::kF32,
                               .head_dim = static_cast<int64_t>(k.shape(2))};
    LayerCache cache(cpu.backend(), heads, layout, n);
    cpu.backend().run(Vote{.window = act(q),
                           .n_queries = w,
                           .kv = cache.append(act(k), act(k)),
                           .scale = scale,
                           .reduce = max_over_group ? GroupReduce::kMax : GroupReduce::kMean,
                           .votes = {votes.data(), {heads, n - w}}});
  }
  return array<float, 2>(std::move(votes), {k.shape(1), static_cast<size_t>(n - w)});
}

View<const float, 2> view(const Array<const float, 2>& a) {
  return {a.data(), {static_cast<int64_t>(a.shape(0)), static_cast<int64_t>(a.shape(1))}};
}

auto pool_votes(const Array<const float, 2>& votes, const std::string& pooling, int64_t kernel) {
  const auto pool = choose<Pooling>("pooling", pooling,
                                    {{"avg", Pooling::kAvg},
                                     {"max", Pooling::kMax},
                                     {"both", Pooling::kBoth},
                                     {"none", Pooling::kNone}});
  std::vector<float> out(votes.size());
  const std::vector<int32_t> n_votes(votes.shape(0), static_cast<int32_t>(votes.shape(1)));
  {
    const nb::gil_scoped_release free;
    const Cpu cpu(false);
    cpu.backend().run(PoolVotes{.votes = view(votes),
                                .n_votes = {n_votes.data(), {std::ssize(n_votes)}},
                                .pooling = pool,
                                .kernel = kernel,
                                .out = {out.data(), view(votes).dims}});
  }
  return array<float, 2>(std::move(out), {votes.shape(0), votes.shape(1)});
}

// The rows of the highest votes and the window's behind them, ascending: [n_heads, kept].
auto keep_top(const Array<const float, 2>& votes, int64_t n_top, int64_t window) {
  require(n_top >= 0 && window >= 0, "n_top is {} and window {}, expected 0 or more", n_top,
          window);
  const int64_t heads = view(votes).dim(0), m = view(votes).dim(1);
  const int64_t kept = std::min(n_top, m) + window;
  std::vector<int32_t> rows(static_cast<size_t>(heads * kept)), count(votes.shape(0));
  const std::vector<int32_t> n_votes(votes.shape(0), static_cast<int32_t>(m));
  {
    const nb::gil_scoped_release free;
    const Cpu cpu(false);
    cpu.backend().run(KeepTop{.votes = view(votes),
                              .n_votes = {n_votes.data(), {heads}},
                              .n_top = std::min(n_top, m),
                              .window = window,
                              .out = {{rows.data(), {heads, kept}}, {count.data(), {heads}}}});
  }
  return array<int32_t, 2>(std::move(rows), {votes.shape(0), static_cast<size_t>(kept)});
}

}  // namespace

void bind_ops(nb::module_& m) {
  nb::class_<Choice>(m, "Choice", "What was chosen for a layer.")
      .def_prop_ro("segment", &Choice::segment)
      .def_prop_ro("block", &Choice::block)
      .def_prop_ro("count", &Choice::count, nb::rv_policy::automatic)
      .def_prop_ro("index", &Choice::index, nb::rv_policy::automatic)
      .def_prop_ro("entropy", &Choice::entropy, nb::rv_policy::automatic)
      .def_prop_ro("density", &Choice::density);
  nb::class_<Reader>(m, "Reader", "Reads a prompt under a policy, layer by layer.")
      .def(nb::init<const Policy&, int64_t, int64_t, int64_t, int64_t, int64_t, bool>(),
           nb::arg("policy"), nb::arg("n_layers"), nb::arg("n_heads"), nb::arg("n_kv_heads"),
           nb::arg("head_dim"), nb::arg("n_tokens"), nb::arg("bf16"))
      .def("read", &Reader::read, nb::arg("layer"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
           nb::arg("out").none(), nb::arg("with_blocks"));
  m.def("sparse_attention", &sparse_attention, nb::arg("q"), nb::arg("k"), nb::arg("v"),
        nb::arg("out"), nb::arg("count").none(), nb::arg("index").none(), nb::arg("segment"),
        nb::arg("block"), nb::arg("scale"), nb::arg("bf16"));
  m.def("block_scores", &block_scores, nb::arg("q"), nb::arg("k"), nb::arg("segment"),
        nb::arg("block"), nb::arg("scale"), nb::arg("bf16"));
  m.def("vote", &vote, nb::arg("q"), nb::arg("k"), nb::arg("max_over_group"), nb::arg("scale"),
        nb::arg("bf16"));
  m.def("pool_votes", &pool_votes, nb::arg("votes"), nb::arg("pooling"), nb::arg("kernel"));
  m.def("keep_top", &keep_top, nb::arg("votes"), nb::arg("n_top"), nb::arg("window"));
}

}  // namespace ei::python
