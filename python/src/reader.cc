#include <algorithm>
#include <cmath>

#include "ei/prefill/plan.h"
#include "python/src/place.h"

namespace ei::python {
namespace {

// Whether blocks are chosen by bounds of their keys, which the pages then keep.
bool has_bounds(const PrefillPolicy& policy) {
  return policy.estimate == Estimate::kBounds && !policy.is_dense();
}

// Reads a prompt under a policy, layer by layer: the engine's own plan, for those who compute
// queries and keys themselves.
class Reader {
 public:
  Reader(const Place& place, const Policy& policy, int64_t n_layers, int64_t n_heads,
         int64_t n_kv_heads, int64_t head_dim, int64_t n_tokens) {
    require(n_layers >= 1 && n_heads >= 1 && n_kv_heads >= 1 && head_dim >= 1 && n_tokens >= 1,
            "{} tokens, {} layers, {} heads, {} KV heads of size {}: expected 1 or more of each",
            n_tokens, n_layers, n_heads, n_kv_heads, head_dim);
    const nb::gil_scoped_release free;
    const Turn turn(place);
    state_.emplace(place, turn.backend(), policy.prefill(),
                   PrefillPlan::Shape{.n_layers = n_layers,
                                      .n_heads = n_heads,
                                      .n_kv_heads = n_kv_heads,
                                      .head_dim = head_dim,
                                      .max_tokens = n_tokens,
                                      .page = page_of(policy.prefill().segment),
                                      .chunk = turn.backend().prompt_rows()});
  }
  ~Reader() {
    const std::lock_guard<std::mutex> lock(Turn::mutex());
    state_.reset();
  }

  int64_t segment() const { return state_->plan.policy().segment; }
  int64_t block() const { return state_->plan.policy().block; }
  int64_t dense_layers() const { return state_->shape.n_layers - state_->n_sparse; }
  int64_t most_blocks() const { return state_->plan.most_blocks(); }
  // Directions that keys are projected on; 0: nothing is chosen by them.
  int64_t n_directions() const {
    return state_->plan.wants_sketch() ? state_->sketch_shape().n_directions() : 0;
  }
  // Segments of each chunk that the prompt is read in.
  std::vector<int64_t> chunks() const {
    std::vector<int64_t> n;
    for (const Chunk& chunk : state_->chunks) n.push_back(state_->segments(chunk.size));
    return n;
  }

  // Chooses a layer's blocks for q [n_tokens, n_heads, d] among k and v [n_tokens, n_kv_heads, d]
  // and, if there is an `out` [n_tokens, n_heads, d], attends to them. A layer that is not dense
  // leaves what it chose, of each KV head and segment: how many past blocks (kAllBlocks: all),
  // which ones if `index` is there, and the entropy in nats of what they were chosen by. `count`
  // and `index` have chunk behind chunk, each [n_kv_heads, n_segments] and [n_kv_heads, n_segments,
  // most_blocks]; `entropy` is [n_segments, sparse layers, n_kv_heads]. `sketch`: of every layer,
  // as measure_sketch() returns them, directions of keys; only this layer's are looked at.
  void read(const Place& place, int layer, const Rows& q, const Rows& k, const Rows& v,
            const std::optional<Rows>& out, const std::optional<Ints<1>>& count,
            const std::optional<Ints<1>>& index, const std::optional<Floats<3>>& entropy,
            const std::optional<Floats<1>>& sketch) {
    State& s = *state_;
    const PrefillPlan::Shape& shape = s.shape;
    require(layer >= 0 && layer < shape.n_layers, "layer is {}, expected 0 to {}", layer,
            shape.n_layers - 1);
    require(
        place.gpu == s.place.gpu && place.bf16 == s.place.bf16,
        "the tensors are on another device or of another type than those that the reader is for");
    const auto n = static_cast<size_t>(shape.max_tokens), d = static_cast<size_t>(shape.head_dim);
    expect_rows("q", q, n, static_cast<size_t>(shape.n_heads), d);
    expect_rows("k", k, n, static_cast<size_t>(shape.n_kv_heads), d);
    expect_rows("v", v, n, static_cast<size_t>(shape.n_kv_heads), d);
    if (out) expect_rows("out", *out, n, static_cast<size_t>(shape.n_heads), d);
    const Act queries = act(place, "q", q), all_k = act(place, "k", k), all_v = act(place, "v", v);
    const Act to = out ? act(place, "out", *out) : Act{};
    Chosen chosen;
    const int64_t slots = shape.n_kv_heads * s.segments(shape.max_tokens);
    if (count) chosen.count = room(view<int32_t, 1>(place, "count", *count), slots);
    if (index) chosen.index = room(view<int32_t, 1>(place, "index", *index), slots * most_blocks());
    if (entropy)
      chosen.entropy = room(view<float, 3>(place, "entropy", *entropy), slots * s.n_sparse);

    View<float, 1> directions;
    if (sketch) directions = view<float, 1>(place, "sketch", *sketch);

    const nb::gil_scoped_release free;
    const Turn turn(place);
    if (sketch) s.use(turn.backend(), directions);
    s.plan.observe([&](int, const Chunk&, const PrefillPlan::Choice& seen) {
      chosen.add(turn.backend(), seen);
    });
    s.read(turn.backend(), layer, queries, all_k, all_v, to);
  }

 private:
  // Where what is chosen goes, chunk after chunk; null: nowhere.
  struct Chosen {
    int32_t *count = nullptr, *index = nullptr;
    float* entropy = nullptr;

    void add(Backend& backend, const PrefillPlan::Choice& seen) {
      append(backend, count, seen.selection.count.data, seen.selection.count.size());
      append(backend, index, seen.selection.index.data, seen.selection.index.size());
      append(backend, entropy, seen.entropy.data, seen.entropy.size());
    }
    template <class T>
    static void append(Backend& backend, T*& to, const T* from, int64_t n) {
      if (to == nullptr || n == 0) return;
      backend.copy_in(to, from, n * int64_t{sizeof(T)});
      to += n;
    }
  };

  template <class T, int N>
  static T* room(const View<T, N>& view, int64_t size) {
    require(view.size() == size, "there is room for {} numbers, expected {}", view.size(), size);
    return view.data;
  }

  struct State {
    State(const Place& of, Backend& backend, const PrefillPolicy& policy,
          const PrefillPlan::Shape& size)
        : place(of),
          shape(size),
          plan(backend, policy, size),
          cache(backend, size.n_kv_heads,
                {.dtype = of.dtype(),
                 .head_dim = size.head_dim,
                 .rows = size.page,
                 .block = has_bounds(policy) ? policy.block : 0},
                size.max_tokens),
          n_sparse(plan.entropies().dim(1) / size.n_kv_heads) {
      plan.begin(size.max_tokens, 0);
      for (int64_t at = 0; at < size.max_tokens; at += chunks.back().size)
        chunks.push_back(plan.next(at, INT64_MAX));
    }

    int64_t segments(int64_t n) const {
      return (n + plan.policy().segment - 1) / plan.policy().segment;
    }
    Sketch::Shape sketch_shape() const {
      return {
          .n_layers = shape.n_layers, .n_kv_heads = shape.n_kv_heads, .head_dim = shape.head_dim};
    }

    void use(Backend& backend, const View<float, 1>& directions) {
      sketch.emplace(backend, sketch_shape(), std::span<const float>(directions));
      plan.use(&*sketch);
    }

    void read(Backend& backend, int layer, const Act& q, const Act& k, const Act& v,
              const Act& out) {
      cache.rewind();  // what was read before, be it to its end or not
      for (const Chunk& chunk : chunks) {
        const auto rows = [&](const Act& all) { return all.slice(chunk.begin, chunk.size); };
        const KvLayer kv = cache.append(rows(k), rows(v));
        const Selection seen = plan.select(layer, chunk, rows(q), kv);
        if (out.data == nullptr) continue;
        backend.run(SparseAttention{.q = rows(q),
                                    .kv = kv,
                                    .begin = chunk.begin,
                                    .segment = plan.policy().segment,
                                    .block = plan.policy().block,
                                    .selection = seen,
                                    .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim)),
                                    .out = rows(out)});
      }
    }

    Place place;
    PrefillPlan::Shape shape;
    PrefillPlan plan;
    LayerCache cache;
    std::vector<Chunk> chunks;
    int64_t n_sparse;  // layers
    std::optional<Sketch> sketch;
  };
  std::optional<State> state_;  // memory of the device's, which only who has a turn may touch
};

}  // namespace

void bind_reader(nb::module_& m) {
  nb::class_<Reader>(m, "Reader", "Reads a prompt under a policy, layer by layer.")
      .def(nb::init<const Place&, const Policy&, int64_t, int64_t, int64_t, int64_t, int64_t>(),
           nb::arg("place"), nb::arg("policy"), nb::arg("n_layers"), nb::arg("n_heads"),
           nb::arg("n_kv_heads"), nb::arg("head_dim"), nb::arg("n_tokens"))
      .def_prop_ro("segment", &Reader::segment)
      .def_prop_ro("block", &Reader::block)
      .def_prop_ro("dense_layers", &Reader::dense_layers)
      .def_prop_ro("most_blocks", &Reader::most_blocks)
      .def_prop_ro("chunks", &Reader::chunks)
      .def_prop_ro("n_directions", &Reader::n_directions)
      .def("read", &Reader::read, nb::arg("place"), nb::arg("layer"), nb::arg("q"), nb::arg("k"),
           nb::arg("v"), nb::arg("out").none(), nb::arg("count").none(), nb::arg("index").none(),
           nb::arg("entropy").none(), nb::arg("sketch").none());
}

}  // namespace ei::python
