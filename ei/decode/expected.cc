#include "ei/decode/expected.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "ei/base/fail.h"
#include "ei/policy/split.h"

namespace ei {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

}  // namespace

ExpectedQueries expect_queries(const ModelConfig& config, std::span<const float> queries,
                               int64_t next) {
  const int64_t d = config.head_dim, half = d / 2, width = config.n_heads * d;
  const int64_t n = std::ssize(queries) / width;
  const RopeFrequencies rope = rope_frequencies(config.rope, d);
  const auto angle = [&](int64_t position, int64_t j) {
    return double(position) * double(rope.inv_freq[static_cast<size_t>(j)]);
  };
  // The two channels that RoPE turns by angle j.
  const auto first = [&](int64_t j) { return config.rope.interleaved ? 2 * j : j; };
  const auto second = [&](int64_t j) { return config.rope.interleaved ? 2 * j + 1 : j + half; };

  Matrix turn = Matrix::Zero(d, d);
  for (int64_t j = 0; j < half; ++j) {
    double c = 0, s = 0;
    for (int64_t p = next; p < next + kExpectedPositions; ++p) {
      c += std::cos(angle(p, j));
      s += std::sin(angle(p, j));
    }
    c *= double(rope.scale) / double(kExpectedPositions);
    s *= double(rope.scale) / double(kExpectedPositions);
    turn(first(j), first(j)) = turn(second(j), second(j)) = c;
    turn(first(j), second(j)) = -s;
    turn(second(j), first(j)) = s;
  }

  Matrix all(n, width);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < half; ++j) {
      const double a = angle(next - n + i, j);
      const double c = std::cos(a) / double(rope.scale), s = std::sin(a) / double(rope.scale);
      for (int64_t h = 0; h < config.n_heads; ++h) {
        const float* q = queries.data() + i * width + h * d;
        const double x = double(q[first(j)]), y = double(q[second(j)]);
        all(i, h * d + first(j)) = x * c + y * s;
        all(i, h * d + second(j)) = y * c - x * s;
      }
    }

  ExpectedQueries out;
  for (int64_t h = 0; h < config.n_heads; ++h) {
    const Matrix q = all.middleCols(h * d, d);
    const Eigen::RowVectorXd mean = q.colwise().mean();
    const Matrix centred = q.rowwise() - mean;
    const Matrix covariance = turn * (centred.transpose() * centred / double(n)) * turn.transpose();
    const Eigen::RowVectorXd turned = mean * turn.transpose();
    for (int64_t c = 0; c < d; ++c) out.mean.push_back(static_cast<float>(turned[c]));
    for (int64_t i = 0; i < d * d; ++i)
      out.covariance.push_back(static_cast<float>(covariance.data()[i]));
  }
  return out;
}

Compressor::Votes expected_votes(Backend& backend, const ModelConfig& config,
                                 const DecodePolicy& policy, const KvCache& cache,
                                 const QueryWindow& window) {
  require(
      backend.act_bytes() == sizeof(float),
      "expected: queries to come are measured on the CPU alone; run there (--device cpu) or keep "
      "the cache by another policy");
  return [&](int l, const View<float, 2>& votes) {
    const int64_t next = cache.n_tokens(), width = config.n_heads * config.head_dim;
    const int64_t n = std::clamp<int64_t>(next - kStreamingSinks, 1, policy.window);
    const Act ring = window.ring(l);
    std::vector<float> queries;
    for (int64_t p = next - n; p < next; ++p) {
      const auto* row = static_cast<const float*>(ring.slice(p % ring.rows, 1).data);
      queries.insert(queries.end(), row, row + width);
    }
    const ExpectedQueries expected = expect_queries(config, queries, next);
    const DeviceArray<float, 1> mean(backend, expected.mean);
    const DeviceArray<float, 1> covariance(backend, expected.covariance);
    backend.run(ExpectVotes{
        .mean = {mean.view().data, {config.n_heads, config.head_dim}},
        .covariance = {covariance.view().data, {config.n_heads, config.head_dim, config.head_dim}},
        .kv = cache.layer(l),
        .scale = 1 / std::sqrt(static_cast<float>(config.head_dim)),
        .sinks = kStreamingSinks,
        .votes = votes});
  };
}

}  // namespace ei
