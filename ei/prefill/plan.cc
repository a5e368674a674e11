#include "ei/prefill/plan.h"

#include <algorithm>
#include <cmath>

#include "ei/base/fail.h"
#include "ei/policy/settings.h"

namespace ei {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Scratch that only grows.
void ensure(Backend& backend, Buffer& buffer, int64_t bytes) {
  if (buffer.bytes() >= bytes) return;
  buffer = Buffer();
  buffer = Buffer(backend, bytes);
}

int64_t n_sparse_layers(const PrefillPolicy& policy, const PrefillPlan::Shape& shape) {
  return policy.is_dense() ? 0 : std::max<int64_t>(0, shape.n_layers - policy.dense_layers);
}

// Rules that look at the whole prompt need it in one chunk.
bool at_once(const PrefillPolicy& policy) {
  return policy.budget.rigid_whole_prompt && !policy.is_dense();
}

// What select() needs for the longest chunk of a prompt.
struct Scratch {
  int64_t rows;         // (KV head, segment)
  int64_t past_blocks;  // before the last segment
  int64_t most_blocks;  // of them that can be selected

  int64_t scores() const { return rows * past_blocks * int64_t{sizeof(float)}; }
  int64_t budgets() const { return rows * int64_t{sizeof(float)}; }
  int64_t index() const { return rows * most_blocks * int64_t{sizeof(int32_t)}; }
  int64_t count() const { return rows * int64_t{sizeof(int32_t)}; }
};

Scratch scratch(const PrefillPolicy& policy, const PrefillPlan::Shape& shape, int64_t n_tokens) {
  const int64_t chunk = std::min(PrefillPlan::chunk_rows(policy, shape, n_tokens), n_tokens);
  const int64_t past = ceil_div(n_tokens, policy.segment) * policy.segment / policy.block;
  const double top = policy.estimate == Estimate::kBounds
                         ? std::floor(double(policy.budget.max_factor) * double(policy.budget.base))
                         : double(past * policy.block);
  return {.rows = shape.n_kv_heads * ceil_div(chunk, policy.segment),
          .past_blocks = past,
          .most_blocks = std::min<int64_t>(past, static_cast<int64_t>(top) / policy.block)};
}

}  // namespace

PrefillPlan::PrefillPlan(Backend& backend, const PrefillPolicy& policy, const Shape& shape)
    : backend_(backend), policy_(policy), shape_(shape) {
  validate(policy);
  require(shape.page > 0 && shape.page % policy.segment == 0,
          "prefill: segment {} does not divide a page of {} tokens", policy.segment, shape.page);
  const int64_t n_sparse = n_sparse_layers(policy, shape);
  const int64_t max_segments = std::max<int64_t>(1, ceil_div(shape.max_tokens, policy.segment));
  entropy_ = DeviceArray<float, 3>(backend, {max_segments, n_sparse, shape.n_kv_heads});
  blocks_ = DeviceArray<int32_t, 2>(backend, {n_sparse, shape.n_kv_heads * max_segments});
}

int64_t PrefillPlan::bytes(const PrefillPolicy& policy, const Shape& shape, int64_t n_tokens) {
  const int64_t max_segments = std::max<int64_t>(1, ceil_div(shape.max_tokens, policy.segment));
  const Scratch s = scratch(policy, shape, n_tokens);
  int64_t bytes = max_segments * n_sparse_layers(policy, shape) * shape.n_kv_heads *
                  int64_t{sizeof(float) + sizeof(int32_t)};
  bytes += s.count();  // of dense layers
  if (policy.estimate == Estimate::kSketch && !policy.is_dense())
    bytes += Sketch::Shape{shape.n_layers, shape.n_kv_heads, shape.head_dim}.size() *
             int64_t{sizeof(float)};
  if (!policy.is_dense()) bytes += s.scores() + s.budgets() + s.index() + s.count();
  return bytes;
}

bool PrefillPlan::sparse(int layer) const {
  return !policy_.is_dense() && layer >= policy_.dense_layers;
}

int64_t PrefillPlan::sparse_layer(int layer) const { return layer - policy_.dense_layers; }

// The dense tail: the last segment, which holds the question, and those before it that hold any of
// the last dense_tail tokens.
int64_t PrefillPlan::first_dense_segment(int64_t n_tokens) const {
  const int64_t last = ceil_div(n_tokens, policy_.segment) - 1;
  return std::min(last, std::max<int64_t>(0, n_tokens - policy_.dense_tail) / policy_.segment);
}

bool PrefillPlan::wants_sketch() const {
  return policy_.estimate == Estimate::kSketch && !policy_.is_dense() &&
         ceil_div(policy_.threshold_len, policy_.segment) < first_dense_segment(n_tokens_);
}

int64_t PrefillPlan::most_blocks() const { return scratch(policy_, shape_, n_tokens_).most_blocks; }

bool PrefillPlan::can_go_on() const { return !at_once(policy_); }

int64_t PrefillPlan::reusable(int64_t n_tokens) const {
  if (policy_.is_dense()) return n_tokens / shape_.page * shape_.page;
  if (at_once(policy_) || n_tokens == 0) return 0;
  return first_dense_segment(n_tokens) * policy_.segment / shape_.page * shape_.page;
}

int64_t PrefillPlan::chunk_rows(const PrefillPolicy& policy, const Shape& shape, int64_t n_tokens) {
  if (at_once(policy)) return n_tokens;
  return ceil_div(std::max<int64_t>(1, shape.chunk), shape.page) * shape.page;
}

void PrefillPlan::begin(int64_t n_tokens, int64_t cached) {
  require(cached % unit_of(policy_) == 0 && cached < n_tokens,
          "prefill: {} of {} tokens are cached, expected fewer, a multiple of {}", cached, n_tokens,
          unit_of(policy_));
  n_tokens_ = n_tokens;
  chunks_.clear();

  const Scratch s = scratch(policy_, shape_, n_tokens);
  all_ = DeviceArray<int32_t, 1>(backend_,
                                 std::vector<int32_t>(static_cast<size_t>(s.rows), kAllBlocks));
  if (policy_.is_dense()) return;
  ensure(backend_, scores_, s.scores());
  ensure(backend_, budgets_, s.budgets());
  ensure(backend_, index_, s.index());
  ensure(backend_, count_, s.count());
}

Chunk PrefillPlan::next(int64_t at, int64_t max_rows) {
  int64_t rows = chunk_rows(n_tokens_);
  if (!at_once(policy_)) rows = std::clamp(max_rows / shape_.page * shape_.page, shape_.page, rows);
  rows -= at % shape_.page;
  chunks_.push_back({at, std::min(rows, n_tokens_ - at)});
  return chunks_.back();
}

View<int32_t, 2> PrefillPlan::blocks(int layer, const Chunk& chunk) const {
  const int64_t first = chunk.begin / policy_.segment;
  return {blocks_.view()[sparse_layer(layer)].data + first * shape_.n_kv_heads,
          {shape_.n_kv_heads, n_segments(chunk)}};
}

int64_t PrefillPlan::n_segments(const Chunk& chunk) const {
  return ceil_div(chunk.begin + chunk.size, policy_.segment) - chunk.begin / policy_.segment;
}

Selection PrefillPlan::select(int layer, const Chunk& chunk, const Act& q, const KvLayer& kv) {
  if (!sparse(layer))
    return {.count = {all_.view().data, {shape_.n_kv_heads, n_segments(chunk)}}, .index = {}};

  const int64_t first = chunk.begin / policy_.segment;
  const Scratch s = scratch(policy_, shape_, n_tokens_);
  const std::array<int64_t, 2> rows = {shape_.n_kv_heads, n_segments(chunk)};
  const View<float, 3> score = {static_cast<float*>(scores_.data()),
                                {rows[0], rows[1], s.past_blocks}};
  const View<float, 3> entropy = entropy_.view();
  const View<float, 2> budgets = {static_cast<float*>(budgets_.data()), rows};
  const Selection selection = {
      .count = {static_cast<int32_t*>(count_.data()), rows},
      .index = {static_cast<int32_t*>(index_.data()), {rows[0], rows[1], s.most_blocks}}};
  const auto chosen = [&](const Selection& selected) {
    if (observer_)
      observer_(layer, chunk,
                {.selection = selected,
                 .tokens = policy_.estimate == Estimate::kBounds ? budgets : View<float, 2>(),
                 .entropy = entropy.slice(first, rows[1]),
                 .entropy_layer = sparse_layer(layer)});
    return selected;
  };
  if (policy_.estimate != Estimate::kBounds)
    return chosen(select_mass(layer, chunk, q, kv, score, budgets,
                              {.count = blocks(layer, chunk), .index = selection.index}));

  // Profile: how much each segment wants each past block, and the entropy of that.
  backend_.run(ScoreBlocks{
      .q = q,
      .begin = chunk.begin,
      .segment = policy_.segment,
      .scale = policy_.scale_scores ? 1 / std::sqrt(static_cast<float>(shape_.head_dim)) : 1.0f,
      .kv = kv,
      .score = score,
      .entropy = entropy,
      .layer = sparse_layer(layer)});
  // Allocate: a budget per head and segment, by how entropy moved.
  backend_.run(AllocateBudget{.entropy = entropy,
                              .layer = sparse_layer(layer),
                              .first_segment = first,
                              .segment = policy_.segment,
                              .block = policy_.block,
                              .rule = policy_.budget,
                              .dense_before = ceil_div(policy_.threshold_len, policy_.segment),
                              .dense_from = first_dense_segment(n_tokens_),
                              .tokens = budgets,
                              .blocks = blocks(layer, chunk)});
  if (policy_.fusion > 0) fuse_layers(layer, chunk, score);
  // Select: the blocks most wanted.
  backend_.run(SelectBlocks{.score = score,
                            .blocks = blocks(layer, chunk),
                            .first_segment = first,
                            .segment = policy_.segment,
                            .block = policy_.block,
                            .rank = policy_.fusion > 0 ? Rank::kScore : policy_.rank,
                            .sink_blocks = ceil_div(policy_.sink, policy_.block),
                            .recent_blocks = ceil_div(policy_.local, policy_.block),
                            .out = selection});
  return chosen(selection);
}

// Estimate how the attention of every segment is shared out, and keep what holds most of it.
Selection PrefillPlan::select_mass(int layer, const Chunk& chunk, const Act& q, const KvLayer& kv,
                                   const View<float, 3>& mass, const View<float, 2>& own,
                                   const Selection& out) {
  const int64_t dense_before = ceil_div(policy_.threshold_len, policy_.segment);
  const int64_t dense_from = first_dense_segment(n_tokens_);
  backend_.run(EstimateMass{.estimate = policy_.estimate,
                            .q = q,
                            .begin = chunk.begin,
                            .segment = policy_.segment,
                            .block = policy_.block,
                            .scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim)),
                            .stride = policy_.stride,
                            .basis = sketch_ == nullptr ? SketchBasis{} : sketch_->layer(layer),
                            .dense_before = dense_before,
                            .dense_from = dense_from,
                            .kv = kv,
                            .mass = mass,
                            .own = own,
                            .entropy = entropy_.view(),
                            .layer = sparse_layer(layer)});
  backend_.run(SelectMass{.mass = mass,
                          .own = own,
                          .first_segment = chunk.begin / policy_.segment,
                          .segment = policy_.segment,
                          .block = policy_.block,
                          .total = policy_.mass,
                          .by_entropy = policy_.by_entropy,
                          .share = policy_.share,
                          .sink = policy_.sink,
                          .local = policy_.local,
                          .dense_before = dense_before,
                          .dense_from = dense_from,
                          .out = out});
  return out;
}

// Replaces scores by their softmax, mixed with that of the layer before. On the host: no more than
// some megabytes a chunk, for a setting that is there to be compared with.
void PrefillPlan::fuse_layers(int layer, const Chunk& chunk, const View<float, 3>& score) {
  const int64_t width = score.dim(2);
  std::vector<float> p(static_cast<size_t>(score.size()));
  const int64_t n_bytes = score.size() * int64_t{sizeof(float)};
  backend_.copy_out(p.data(), score.data, n_bytes);
  for (int64_t row = 0; row < score.dim(0) * score.dim(1); ++row) {
    const int64_t segment = chunk.begin / policy_.segment + row % score.dim(1);
    const auto n = static_cast<size_t>(segment * policy_.segment / policy_.block);
    if (n == 0) continue;
    float* const at = p.data() + row * width;
    const float top = *std::max_element(at, at + n);
    float sum = 0;
    for (size_t b = 0; b < n; ++b) sum += at[b] = std::exp(at[b] - top);
    for (size_t b = 0; b < n; ++b) at[b] /= sum;
    if (layer < 2 || fused_.empty()) continue;
    const float* const before = fused_.data() + row * width;
    for (size_t b = 0; b < n; ++b)
      at[b] = policy_.fusion * before[b] + (1 - policy_.fusion) * at[b];
  }
  backend_.copy_in(score.data, p.data(), n_bytes);
  fused_ = std::move(p);
  if (layer + 1 == shape_.n_layers) fused_.clear();
}

PrefillStats PrefillPlan::stats() {
  PrefillStats stats;
  const auto counts = blocks_.to_host(backend_);
  const auto entropies = entropy_.to_host(backend_);
  const View<const float, 3> entropy = {entropies.data(), entropy_.view().dims};
  for (int l = 0; l < shape_.n_layers; ++l) {
    const bool is_sparse = sparse(l);
    const int64_t at_layer = sparse_layer(l) * blocks_.view().dim(1);
    for (const Chunk& chunk : chunks_) {
      for (int64_t s = 0; s < n_segments(chunk); ++s) {
        const int64_t segment = chunk.begin / policy_.segment + s;
        const int64_t begin = std::max(chunk.begin, segment * policy_.segment);
        const int64_t end = std::min(chunk.begin + chunk.size, (segment + 1) * policy_.segment);
        const double past = double(begin), size = double(end - begin);
        const double own = size * (size + 1) / 2;
        stats.dense_pairs += double(shape_.n_kv_heads) * (size * past + own);
        for (int64_t h = 0; h < shape_.n_kv_heads; ++h) {
          double seen = past;
          if (is_sparse) {
            const int64_t at = at_layer + chunk.begin / policy_.segment * shape_.n_kv_heads +
                               h * n_segments(chunk) + s;
            const int32_t count = counts[static_cast<size_t>(at)];
            if (count != kAllBlocks) {
              seen = double(count) * double(policy_.block);
              stats.kept_blocks += count;
              ++stats.n_sparse;
            }
          }
          stats.attended_pairs += size * seen + own;
        }
      }
    }
    if (!is_sparse) continue;
    for (int64_t h = 0; h < shape_.n_kv_heads; ++h) {
      bool rigid = true;
      for (int64_t s = 1; s < ceil_div(n_tokens_, policy_.segment); ++s)
        rigid &= entropy[s][sparse_layer(l)][h] < policy_.budget.e_t;
      ++(rigid ? stats.rigid_heads : stats.dynamic_heads);
    }
  }
  return stats;
}

}  // namespace ei
