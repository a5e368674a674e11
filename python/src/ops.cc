#include <algorithm>
#include <vector>

#include "ei/ops/buffer.h"
#include "python/src/place.h"

// Ops on arrays in memory, of one sequence, which get arrays for what they find. Keys and values
// are copied into pages as they are used, in the arrays' own type, so that nothing is rounded: next
// to attention the copy takes no time.
namespace ei::python {
namespace {

// Blocks that are not there would be read from memory that is not. Of a CPU's: to look at a GPU's
// is to wait for it.
void expect_blocks(const Selection& seen, int64_t first_segment, int64_t per_segment) {
  const int64_t n_segments = seen.count.dim(1), most = seen.index.dim(2);
  for (int64_t i = 0; i < seen.count.size(); ++i) {
    const int64_t past = (first_segment + i % n_segments) * per_segment;
    const int32_t n = seen.count.data[i];
    const int32_t* const blocks = seen.index.data + i * most;
    require(n == kAllBlocks || (n >= 0 && n <= std::min(past, most)),
            "count[{}, {}] is {}, expected -1 (all) or 0 to {}", i / n_segments, i % n_segments, n,
            std::min(past, most));
    for (int32_t j = 0; j < n; ++j)
      require(blocks[j] >= 0 && blocks[j] < past && (j == 0 || blocks[j] > blocks[j - 1]),
              "index[{}, {}, {}] is {}, expected ascending blocks below {}, those before the "
              "segment",
              i / n_segments, i % n_segments, j, blocks[j], past);
  }
}

void expect_segments(int64_t segment, int64_t block) {
  require(segment >= 1 && block >= 1 && segment % block == 0,
          "segment is {}, expected a multiple of block, {}", segment, block);
}

PageLayout layout(const Place& place, const Rows& k, int64_t rows = 512, int64_t block = 0) {
  return {.dtype = place.dtype(),
          .head_dim = static_cast<int64_t>(k.shape(2)),
          .rows = rows,
          .block = block};
}

// Attention of the newest queries of a sequence, q and out [m, n_heads, d], to k and v [n,
// n_kv_heads, d]: to the past blocks of each segment that `count` [n_kv_heads, n_segments] and
// `index` [n_kv_heads, n_segments, the most] name and, causally, to the segment itself; to all, if
// there are none.
void sparse_attention(const Place& place, const Rows& q, const Rows& k, const Rows& v,
                      const Rows& out, const std::optional<Ints<2>>& count,
                      const std::optional<Ints<3>>& index, int64_t segment, int64_t block,
                      float scale) {
  require(k.shape(0) >= q.shape(0) && q.shape(0) >= 1 && k.shape(1) >= 1 && k.shape(2) >= 1 &&
              q.shape(1) % k.shape(1) == 0,
          "q is [{}, {}, {}] and k [{}, {}, {}], expected no more queries than keys and a whole "
          "number of heads for each KV head",
          q.shape(0), q.shape(1), q.shape(2), k.shape(0), k.shape(1), k.shape(2));
  expect_segments(segment, block);
  expect_rows("q", q, q.shape(0), q.shape(1), k.shape(2));
  expect_rows("v", v, k.shape(0), k.shape(1), k.shape(2));
  expect_rows("out", out, q.shape(0), q.shape(1), q.shape(2));
  const auto n = static_cast<int64_t>(k.shape(0)), heads = static_cast<int64_t>(k.shape(1));
  const int64_t begin = n - static_cast<int64_t>(q.shape(0)), first = begin / segment;
  const int64_t n_segments = (n + segment - 1) / segment - first;
  Selection seen;
  if (count && index) {
    seen = {.count = view<int32_t, 2>(place, "count", *count),
            .index = view<int32_t, 3>(place, "index", *index)};
    require(seen.count.dim(0) == heads && seen.count.dim(1) == n_segments,
            "count is [{}, {}], expected [{}, {}]: KV heads, segments", seen.count.dim(0),
            seen.count.dim(1), heads, n_segments);
    require(seen.index.dim(0) == heads && seen.index.dim(1) == n_segments,
            "index is [{}, {}, {}], expected [{}, {}, the most blocks]", seen.index.dim(0),
            seen.index.dim(1), seen.index.dim(2), heads, n_segments);
    if (!place.on_gpu()) expect_blocks(seen, first, segment / block);
    if (seen.index.dim(2) == 0) seen.index = {};
  }
  const Act queries = act(place, "q", q), keys = act(place, "k", k), values = act(place, "v", v),
            to = act(place, "out", out);
  const nb::gil_scoped_release free;
  const Turn turn(place);
  const DeviceArray<int32_t, 1> all(
      turn.backend(),
      std::vector<int32_t>(count ? 0 : static_cast<size_t>(heads * n_segments), kAllBlocks));
  if (!count) seen.count = {all.view().data, {heads, n_segments}};
  LayerCache cache(turn.backend(), heads, layout(place, k, page_of(segment)), n);
  turn.backend().run(SparseAttention{.q = queries,
                                     .kv = cache.append(keys, values),
                                     .begin = begin,
                                     .segment = segment,
                                     .block = block,
                                     .selection = seen,
                                     .scale = scale,
                                     .out = to});
}

// Scores of the blocks before each segment, `score` [n_kv_heads, n_segments, blocks], whose other
// numbers are left as they are, and their entropies, `entropy` [n_segments, n_kv_heads].
void block_scores(const Place& place, const Rows& q, const Rows& k, int64_t segment, int64_t block,
                  float scale, const Floats<3>& score, const Floats<2>& entropy) {
  expect_segments(segment, block);
  require(q.shape(0) >= 1 && k.shape(1) >= 1 && k.shape(2) >= 1, "there are no queries or keys");
  expect_rows("k", k, q.shape(0), k.shape(1), q.shape(2));
  const View<float, 2> entropies = view<float, 2>(place, "entropy", entropy);
  const Act queries = act(place, "q", q), keys = act(place, "k", k);
  const View<float, 3> scores = view<float, 3>(place, "score", score);
  const nb::gil_scoped_release free;
  const Turn turn(place);
  LayerCache cache(turn.backend(), static_cast<int64_t>(k.shape(1)),
                   layout(place, k, page_of(segment), block), queries.rows);
  turn.backend().run(
      ScoreBlocks{.q = queries,
                  .segment = segment,
                  .scale = scale,
                  .kv = cache.append(keys, keys),
                  .score = scores,
                  .entropy = {entropies.data, {entropies.dim(0), 1, entropies.dim(1)}}});
}

// How much the newest queries q [w, n_heads, d] look at each key before them, of k [n, n_kv_heads,
// d]: `votes` [n_kv_heads, n - w].
void vote(const Place& place, const Rows& q, const Rows& k, bool max_over_group, float scale,
          const Floats<2>& votes) {
  require(k.shape(0) > q.shape(0) && q.shape(0) >= 1,
          "{} queries and {} keys, expected more keys than queries", q.shape(0), k.shape(0));
  require(k.shape(1) >= 1 && k.shape(2) >= 1 && scale > 0,
          "k is [{}, {}, {}] and scale {}, expected 1 head or more, and above 0", k.shape(0),
          k.shape(1), k.shape(2), scale);
  const Act queries = act(place, "q", q), keys = act(place, "k", k);
  const View<float, 2> out = view<float, 2>(place, "votes", votes);
  const nb::gil_scoped_release free;
  const Turn turn(place);
  LayerCache cache(turn.backend(), static_cast<int64_t>(k.shape(1)), layout(place, k), keys.rows);
  turn.backend().run(Vote{.window = queries,
                          .n_queries = queries.rows,
                          .kv = cache.append(keys, keys),
                          .scale = scale,
                          .reduce = max_over_group ? GroupReduce::kMax : GroupReduce::kMean,
                          .votes = out});
}

// Votes [n_heads, m] of which all are there.
class AllVotes {
 public:
  AllVotes(Backend& backend, const View<float, 2>& votes)
      : n_(backend, std::vector<int32_t>(static_cast<size_t>(votes.dim(0)),
                                         static_cast<int32_t>(votes.dim(1)))) {}
  View<const int32_t, 1> n() const { return {n_.view().data, n_.view().dims}; }

 private:
  DeviceArray<int32_t, 1> n_;
};

void pool_votes(const Place& place, const Floats<2>& votes, const std::string& pooling,
                int64_t kernel, const Floats<2>& out) {
  const auto pool = choose<Pooling>("pooling", pooling,
                                    {{"avg", Pooling::kAvg},
                                     {"max", Pooling::kMax},
                                     {"both", Pooling::kBoth},
                                     {"none", Pooling::kNone}});
  const View<float, 2> from = view<float, 2>(place, "votes", votes),
                       to = view<float, 2>(place, "out", out);
  const nb::gil_scoped_release free;
  const Turn turn(place);
  const AllVotes all(turn.backend(), from);
  turn.backend().run(PoolVotes{.votes = {from.data, from.dims},
                               .n_votes = all.n(),
                               .pooling = pool,
                               .kernel = kernel,
                               .out = to});
}

// The rows of the highest votes and the window's behind them, ascending: `rows` [n_heads,
// min(n_top, m) + window].
void keep_top(const Place& place, const Floats<2>& votes, int64_t n_top, int64_t window,
              const Ints<2>& rows) {
  require(n_top >= 0 && window >= 0, "n_top is {} and window {}, expected 0 or more", n_top,
          window);
  const View<float, 2> from = view<float, 2>(place, "votes", votes);
  const View<int32_t, 2> to = view<int32_t, 2>(place, "rows", rows);
  const nb::gil_scoped_release free;
  const Turn turn(place);
  const AllVotes all(turn.backend(), from);
  const DeviceArray<int32_t, 1> count(turn.backend(), {from.dim(0)});
  turn.backend().run(KeepTop{.votes = {from.data, from.dims},
                             .n_votes = all.n(),
                             .n_top = std::min(n_top, from.dim(1)),
                             .window = window,
                             .out = {to, count.view()}});
}

}  // namespace

void bind_ops(nb::module_& m) {
  m.def("cuda_available", &cuda_available,
        "Whether the package was built with CUDA and there is a Hopper GPU.");
  nb::class_<Place>(m, "Place", "Where an op's tensors are, and what they are.")
      .def(
          "__init__",
          [](Place* self, bool bf16, int gpu, uintptr_t stream) {
            new (self) Place{.bf16 = bf16, .gpu = gpu, .stream = stream};
          },
          nb::arg("bf16"), nb::arg("gpu") = -1, nb::arg("stream") = 0);
  m.def("sparse_attention", &sparse_attention, nb::arg("place"), nb::arg("q"), nb::arg("k"),
        nb::arg("v"), nb::arg("out"), nb::arg("count").none(), nb::arg("index").none(),
        nb::arg("segment"), nb::arg("block"), nb::arg("scale"));
  m.def("block_scores", &block_scores, nb::arg("place"), nb::arg("q"), nb::arg("k"),
        nb::arg("segment"), nb::arg("block"), nb::arg("scale"), nb::arg("score"),
        nb::arg("entropy"));
  m.def("vote", &vote, nb::arg("place"), nb::arg("q"), nb::arg("k"), nb::arg("max_over_group"),
        nb::arg("scale"), nb::arg("votes"));
  m.def("pool_votes", &pool_votes, nb::arg("place"), nb::arg("votes"), nb::arg("pooling"),
        nb::arg("kernel"), nb::arg("out"));
  m.def("keep_top", &keep_top, nb::arg("place"), nb::arg("votes"), nb::arg("n_top"),
        nb::arg("window"), nb::arg("rows"));
  bind_reader(m);
}

}  // namespace ei::python
