#include "ei/decode/compress.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <tuple>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"
#include "ei/policy/split.h"

namespace ei {
namespace {

// A row of numbers for every head, of the heads of all ranks, in their order.
std::vector<std::vector<float>> of_all_heads(Communicator& ranks,
                                             const std::vector<std::vector<float>>& own) {
  if (ranks.size() == 1) return own;
  int64_t longest = 0;
  for (const auto& row : own) longest = std::max(longest, std::ssize(row));
  longest = std::ranges::max(of_all(ranks, longest));
  // Each behind its length, which a float of less than 2^24 rows holds.
  const auto width = static_cast<size_t>(longest) + 1;
  std::vector<float> mine(own.size() * width), all(mine.size() * static_cast<size_t>(ranks.size()));
  for (size_t h = 0; h < own.size(); ++h) {
    mine[h * width] = static_cast<float>(own[h].size());
    std::ranges::copy(own[h], mine.begin() + static_cast<std::ptrdiff_t>(h * width + 1));
  }
  ranks.gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
  std::vector<std::vector<float>> rows;
  for (auto at = all.begin(); at != all.end(); at += static_cast<std::ptrdiff_t>(width))
    rows.emplace_back(at + 1, at + 1 + static_cast<std::ptrdiff_t>(*at));
  return rows;
}

// How many of the highest votes every head keeps when the heads compete for n_even each (AdaKV, and
// KVzip over all layers). Ties to the lower head, then to the lower row.
std::vector<int64_t> compete(const std::vector<std::vector<float>>& votes, int64_t n_even,
                             float floor) {
  struct Entry {
    float vote;
    int32_t head, row;
  };
  std::vector<Entry> order;
  for (size_t h = 0; h < votes.size(); ++h)
    for (size_t j = 0; j < votes[h].size(); ++j)
      order.push_back({votes[h][j], static_cast<int32_t>(h), static_cast<int32_t>(j)});
  const size_t n = std::min(order.size(), votes.size() * static_cast<size_t>(n_even));
  const auto last = order.begin() + static_cast<std::ptrdiff_t>(n);
  std::nth_element(order.begin(), last, order.end(), [&](const Entry& a, const Entry& b) {
    return a.vote != b.vote ? a.vote > b.vote : std::tie(a.head, a.row) < std::tie(b.head, b.row);
  });
  std::vector<int64_t> won(votes.size(), 0);
  for (auto it = order.begin(); it != last; ++it) ++won[static_cast<size_t>(it->head)];
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
  if (policy.is_full() || policy.split == Split::kStreaming || policy.voter == Voter::kRepeat)
    return 0;
  return policy.window + (policy.off_by_one ? 1 : 0);
}

int64_t Compressor::bytes(const DecodePolicy& policy, int64_t n_heads, int64_t n_kv_heads,
                          int64_t n_rows) {
  const int64_t heads = policy.scope == KvScope::kQueryHead ? n_heads : n_kv_heads;
  int64_t kept = std::min(policy.budget, n_rows);
  if (policy.split == Split::kPyramid) kept *= 2;
  if (policy.split == Split::kAdaptive) kept *= heads;
  if (policy.split == Split::kGlobal) kept = n_rows;
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
  return policy_.regrow > 0 &&
         double(n_ranks_ * cache.n_rows() + rows_ahead_) >=
             double(n_ranks_ * cache.n_heads()) * (double(policy_.budget) + double(policy_.regrow));
}

void Compressor::run(Backend& backend, KvCache& cache, const QueryWindow& window, int64_t n_heads,
                     const Votes& votes) {
  require(votes || policy_.voter == Voter::kWindow || policy_.split == Split::kStreaming,
          "a cache whose voter is not its window is compressed without votes");
  if (policy_.gap == kAutoGap && !cache.compacted() && !settled(backend, cache, window, n_heads))
    return;
  if (policy_.split == Split::kGlobal) {
    share_globally(backend, cache, window, n_heads, votes);
  } else {
    for (int l = 0; l < cache.shape().n_layers; ++l) {
      if (policy_.split == Split::kStreaming) {
        keep_ends(backend, cache, l, policy_.budget);
      } else {
        const Ballot ballot = vote(backend, cache, l, window, n_heads, votes);
        const Choice choice = choose(backend, cache, l, ballot);
        cache.compact(l, choice.keep(), choice.n_kept);
      }
    }
  }
  n_ranks_ = backend.ranks().size();
  rows_ahead_ = sum_of_all(backend.ranks(), cache.n_rows()) - n_ranks_ * cache.n_rows();
}

// Votes are asked for twice, so that those of one layer are held at a time on the device.
void Compressor::share_globally(Backend& backend, KvCache& cache, const QueryWindow& window,
                                int64_t n_heads, const Votes& votes) const {
  const auto ballot = [&](int l) { return vote(backend, cache, l, window, n_heads, votes); };
  Communicator& ranks = backend.ranks();
  std::vector<std::vector<float>> all;
  for (int l = 0; l < cache.shape().n_layers; ++l)
    std::ranges::move(of_all_heads(ranks, ballot(l).to_host(backend)), std::back_inserter(all));
  const std::vector<int64_t> tops =
      compete(all, policy_.budget - policy_.kept_window(), policy_.floor);
  auto of_layer = tops.begin();
  for (int l = 0; l < cache.shape().n_layers; ++l) {
    const Ballot voted = ballot(l);
    const auto n = std::ssize(voted.n_votes);
    const auto own = of_layer + ranks.rank() * n;
    const Choice choice = keep_top(backend, voted, {own, own + n});
    cache.compact(l, choice.keep(), choice.n_kept);
    of_layer += ranks.size() * n;
  }
}

// On the host: some thousand rows a head, for an option that is asked now and then.
bool Compressor::settled(Backend& backend, const KvCache& cache, const QueryWindow& window,
                         int64_t n_heads) {
  if (cache.n_tokens() - n_prompt_ >= policy_.longest_gap()) return true;
  std::vector<std::vector<int32_t>> now;
  bool agree = !looked_at_.empty();
  for (int l = 0; l < cache.shape().n_layers; ++l) {
    const Ballot ballot = vote(backend, cache, l, window, n_heads, {});
    const Choice choice = choose(backend, cache, l, ballot);
    const std::vector<int32_t>& count = choice.n_kept;
    const auto rows = choice.rows.to_host(backend);
    const std::vector<std::vector<float>> votes = ballot.to_host(backend);
    const size_t most = rows.size() / count.size();
    for (size_t h = 0; h < count.size(); ++h) {
      const auto votes_for = [&](const std::vector<int32_t>& kept) {
        double sum = 0;  // rows of the window have no votes, they are kept in any case
        for (const auto row : kept)
          if (row < ballot.n_votes[h]) sum += double(votes[h][static_cast<size_t>(row)]);
        return sum;
      };
      const auto first = rows.begin() + static_cast<std::ptrdiff_t>(h * most);
      now.emplace_back(first, first + count[h]);
      if (agree) agree = votes_for(looked_at_[now.size() - 1]) >= kSettled * votes_for(now.back());
    }
  }
  looked_at_ = std::move(now);
  return sum_of_all(backend.ranks(), agree ? 0 : 1) == 0;
}

std::vector<std::vector<float>> Compressor::Ballot::to_host(Backend& backend) const {
  const std::vector<float> values = votes.to_host(backend);
  std::vector<std::vector<float>> all;
  auto row = values.begin();
  for (const int32_t n : n_votes) {
    all.emplace_back(row, row + n);
    row += votes.view().dim(1);
  }
  return all;
}

Compressor::Ballot Compressor::vote(Backend& backend, const KvCache& cache, int l,
                                    const QueryWindow& window, int64_t n_heads,
                                    const Votes& given) const {
  const KvLayer layer = cache.layer(l);
  const int64_t heads = policy_.scope == KvScope::kQueryHead ? n_heads : layer.n_kv_heads();
  const int64_t kept = policy_.kept_window(), most = layer.rows_bound - kept;
  Ballot ballot{{backend, {heads, most}}, {}};
  for (int64_t h = 0; h < heads; ++h)
    ballot.n_votes.push_back(
        static_cast<int32_t>(cache.rows(l, h * layer.n_kv_heads() / heads) - kept));
  const DeviceArray<int32_t, 1> n_votes(backend, ballot.n_votes);
  const DeviceArray<float, 2> votes(backend, {heads, most});
  if (policy_.voter != Voter::kWindow) {
    given(l, votes.view());
  } else {
    // The reference's window ends one token before the newest.
    const int64_t oldest = cache.n_tokens() - policy_.window - (policy_.off_by_one ? 1 : 0);
    backend.run(Vote{.window = window.ring(l),
                     .first = oldest % window.n_rows(),
                     .n_queries = policy_.window,
                     .kv = layer,
                     .scale = 1 / std::sqrt(static_cast<float>(layer.layout.head_dim)),
                     .reduce = policy_.reduce,
                     .votes = votes.view()});
  }
  backend.run(PoolVotes{.votes = votes.view(),
                        .n_votes = n_votes.view(),
                        .pooling = policy_.pooling,
                        .kernel = policy_.kernel,
                        .out = ballot.votes.view()});
  return ballot;
}

Compressor::Choice Compressor::choose(Backend& backend, const KvCache& cache, int l,
                                      const Ballot& ballot) const {
  const int64_t kept = policy_.kept_window();
  int64_t n_top = policy_.budget - kept;
  if (policy_.split == Split::kPyramid)
    n_top = pyramid_capacity(l, cache.shape().n_layers, n_top, cache.n_tokens() - kept,
                             policy_.pyramid_beta);
  if (policy_.split != Split::kAdaptive) return keep_top(backend, ballot, {&n_top, 1});
  Communicator& ranks = backend.ranks();
  const std::vector<int64_t> tops =
      compete(of_all_heads(ranks, ballot.to_host(backend)), n_top, policy_.floor);
  const auto n = std::ssize(ballot.n_votes);
  return keep_top(backend, ballot, {tops.begin() + ranks.rank() * n, static_cast<size_t>(n)});
}

// n_top: of every head, or one number for all.
Compressor::Choice Compressor::keep_top(Backend& backend, const Ballot& ballot,
                                        std::span<const int64_t> n_top) const {
  const int64_t heads = std::ssize(ballot.n_votes), window = policy_.kept_window();
  const int64_t most = *std::max_element(n_top.begin(), n_top.end());
  const DeviceArray<int32_t, 1> n_votes(backend, ballot.n_votes);
  Choice choice{{backend, {heads, most + window}}, {backend, {heads}}, {}};
  const Keep keep = choice.keep();
  const int64_t at_once = heads / std::ssize(n_top);
  for (int64_t h = 0; h < heads; h += at_once)
    backend.run(KeepTop{.votes = ballot.votes.view().slice(h, at_once),
                        .n_votes = n_votes.view().slice(h, at_once),
                        .n_top = n_top[static_cast<size_t>(h / at_once)],
                        .window = window,
                        .out = {keep.rows.slice(h, at_once), keep.count.slice(h, at_once)}});
  for (int64_t h = 0; h < heads; ++h)
    choice.n_kept.push_back(
        static_cast<int32_t>(std::min<int64_t>(n_top[static_cast<size_t>(h / at_once)],
                                               ballot.n_votes[static_cast<size_t>(h)]) +
                             window));
  return choice;
}

}  // namespace ei
