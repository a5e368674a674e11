#include "ei/decode/compress.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "ei/policy/split.h"

namespace ei {
namespace {

// How many of the highest votes every head keeps when the heads compete for the layer's n_even each
// (AdaKV). Ties to the lower head, then to the lower row.
std::vector<int64_t> compete(const std::vector<float>& votes, const std::vector<int32_t>& n_votes,
                             int64_t n_even, float floor) {
  const size_t heads = n_votes.size(), width = votes.size() / heads;
  std::vector<size_t> order;
  for (size_t h = 0; h < heads; ++h)
    for (size_t j = 0; j < static_cast<size_t>(n_votes[h]); ++j) order.push_back(h * width + j);
  const size_t n = std::min(order.size(), heads * static_cast<size_t>(n_even));
  const auto last = order.begin() + static_cast<std::ptrdiff_t>(n);
  std::nth_element(order.begin(), last, order.end(), [&](size_t a, size_t b) {
    return votes[a] != votes[b] ? votes[a] > votes[b] : a < b;
  });
  std::vector<int64_t> won(heads, 0);
  for (auto it = order.begin(); it != last; ++it) ++won[*it / width];
  for (int64_t& n_top : won) n_top = adaptive_capacity(n_top, n_even, floor);
  return won;
}

// The first rows and the last, whatever is in them (StreamingLLM).
void keep_ends(Backend& backend, KvCache& cache, int layer, int64_t budget) {
  const int64_t heads = cache.layer(layer).n_kv_heads();
  std::vector<int32_t> rows, count;
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t n = cache.rows(layer, h), kept = std::min(n, budget);
    for (int64_t i = 0; i < budget; ++i)
      rows.push_back(static_cast<int32_t>(i < kStreamingSinks ? i : n - kept + i));
    count.push_back(static_cast<int32_t>(kept));
  }
  const DeviceArray<int32_t, 1> all(backend, rows), counts(backend, count);
  cache.compact(layer, {{all.view().data, {heads, budget}}, counts.view()}, count);
}

}  // namespace

int64_t Compressor::window_rows(const DecodePolicy& policy) {
  if (policy.is_full() || policy.split == Split::kStreaming) return 0;
  return policy.window + (policy.off_by_one ? 1 : 0);
}

int64_t Compressor::bytes(const DecodePolicy& policy, int64_t n_heads, int64_t n_kv_heads,
                          int64_t n_rows) {
  const int64_t heads = policy.scope == KvScope::kQueryHead ? n_heads : n_kv_heads;
  int64_t kept = std::min(policy.budget, n_rows);
  if (policy.split == Split::kPyramid) kept *= 2;
  if (policy.split == Split::kAdaptive) kept *= heads;
  int64_t numbers = heads * (std::min(kept, n_rows) + 2);
  if (policy.split != Split::kStreaming) numbers += 2 * heads * n_rows;  // votes, and pooled
  return numbers * int64_t{sizeof(float)};
}

bool Compressor::due(const KvCache& cache) const {
  if (policy_.is_full()) return false;
  if (!cache.compacted() && n_prompt_ > policy_.budget) {
    const int64_t n_written = cache.n_tokens() - n_prompt_;
    if (policy_.gap == kAutoGap) return n_written % kLook == 0;
    return n_written >= policy_.longest_gap();
  }
  return policy_.regrow > 0 && cache.mean_rows() >= double(policy_.budget + policy_.regrow);
}

void Compressor::run(Backend& backend, KvCache& cache, const QueryWindow& window, int64_t n_heads) {
  if (policy_.gap == kAutoGap && !cache.compacted() && !settled(backend, cache, window, n_heads))
    return;
  const KvShape& shape = cache.shape();
  for (int l = 0; l < shape.n_layers; ++l) {
    if (policy_.split == Split::kStreaming) {
      keep_ends(backend, cache, l, policy_.budget);
    } else {
      const Choice choice = choose(backend, cache, l, window, n_heads);
      cache.compact(l, choice.keep(), choice.n_kept);
    }
  }
}

// On the host: some thousand rows a head, for an option that is asked now and then.
bool Compressor::settled(Backend& backend, const KvCache& cache, const QueryWindow& window,
                         int64_t n_heads) {
  if (cache.n_tokens() - n_prompt_ >= policy_.longest_gap()) return true;
  std::vector<std::vector<int32_t>> now;
  bool agree = !looked_at_.empty();
  for (int l = 0; l < cache.shape().n_layers; ++l) {
    const Choice choice = choose(backend, cache, l, window, n_heads);
    const std::vector<int32_t>& count = choice.n_kept;
    const auto rows = choice.rows.to_host(backend);
    const auto votes = choice.votes.to_host(backend);
    const size_t most = rows.size() / count.size(), width = votes.size() / count.size();
    for (size_t h = 0; h < count.size(); ++h) {
      const auto votes_for = [&](const std::vector<int32_t>& kept) {
        double sum = 0;  // rows of the window have no votes, they are kept in any case
        for (const int32_t row : kept)
          if (row < choice.n_votes[h]) sum += double(votes[h * width + static_cast<size_t>(row)]);
        return sum;
      };
      const auto first = rows.begin() + static_cast<std::ptrdiff_t>(h * most);
      now.emplace_back(first, first + count[h]);
      if (agree) agree = votes_for(looked_at_[now.size() - 1]) >= kSettled * votes_for(now.back());
    }
  }
  looked_at_ = std::move(now);
  return agree;
}

Compressor::Choice Compressor::choose(Backend& backend, const KvCache& cache, int l,
                                      const QueryWindow& window, int64_t n_heads) const {
  // The reference's window ends one token before the newest.
  const int64_t oldest = cache.n_tokens() - policy_.window - (policy_.off_by_one ? 1 : 0);
  const KvLayer layer = cache.layer(l);
  const int64_t heads = policy_.scope == KvScope::kQueryHead ? n_heads : layer.n_kv_heads();
  const int64_t most = layer.rows_bound - policy_.window;
  const DeviceArray<float, 2> votes(backend, {heads, most});
  DeviceArray<float, 2> pooled(backend, {heads, most});
  std::vector<int32_t> before_window;
  for (int64_t h = 0; h < heads; ++h)
    before_window.push_back(
        static_cast<int32_t>(cache.rows(l, h * layer.n_kv_heads() / heads) - policy_.window));
  const DeviceArray<int32_t, 1> n_votes(backend, before_window);

  backend.run(Vote{.window = window.ring(l),
                   .first = oldest % window.n_rows(),
                   .n_queries = policy_.window,
                   .kv = layer,
                   .scale = 1 / std::sqrt(static_cast<float>(layer.layout.head_dim)),
                   .reduce = policy_.reduce,
                   .votes = votes.view()});
  backend.run(PoolVotes{.votes = votes.view(),
                        .n_votes = n_votes.view(),
                        .pooling = policy_.pooling,
                        .kernel = policy_.kernel,
                        .out = pooled.view()});

  int64_t n_top = policy_.budget - policy_.window;
  if (policy_.split == Split::kPyramid)
    n_top = pyramid_capacity(l, cache.shape().n_layers, n_top, cache.n_tokens() - policy_.window,
                             policy_.pyramid_beta);
  std::vector<int64_t> tops(before_window.size(), n_top);
  if (policy_.split == Split::kAdaptive) {
    tops = compete(pooled.to_host(backend), before_window, n_top, policy_.floor);
    n_top = *std::max_element(tops.begin(), tops.end());
  }
  DeviceArray<int32_t, 2> rows(backend, {heads, n_top + policy_.window});
  DeviceArray<int32_t, 1> count(backend, {heads});
  const Keep keep = {rows.view(), count.view()};
  const auto keep_top = [&](int64_t first_head, int64_t n, int64_t top) {
    backend.run(KeepTop{.votes = pooled.view().slice(first_head, n),
                        .n_votes = n_votes.view().slice(first_head, n),
                        .n_top = top,
                        .window = policy_.window,
                        .out = {keep.rows.slice(first_head, n), keep.count.slice(first_head, n)}});
  };
  if (policy_.split == Split::kAdaptive) {
    for (int64_t h = 0; h < heads; ++h) keep_top(h, 1, tops[static_cast<size_t>(h)]);
  } else {
    keep_top(0, heads, n_top);
  }
  std::vector<int32_t> n_kept;
  for (size_t h = 0; h < tops.size(); ++h)
    n_kept.push_back(
        static_cast<int32_t>(std::min<int64_t>(tops[h], before_window[h]) + policy_.window));
  return {std::move(rows), std::move(count), std::move(n_kept), std::move(pooled),
          std::move(before_window)};
}

}  // namespace ei
