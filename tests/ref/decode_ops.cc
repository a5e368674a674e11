#include <algorithm>
#include <cmath>
#include <numeric>

#include "ei/policy/pooling.h"
#include "tests/ref/ref.h"

namespace ei::ref {

std::vector<double> vote(const Matrix& queries, const Matrix& k, double scale,
                         GroupReduce over_queries, const std::vector<double>& query_weights,
                         const std::vector<double>& row_weights) {
  const int64_t w = queries.dim(0), n = k.dim(0), d = k.dim(1);
  std::vector<double> votes(size_t(n - w), 0.0);
  for (int64_t i = 0; i < w; ++i) {
    std::vector<double> score;
    for (int64_t j = 0; j <= n - w + i; ++j)
      score.push_back(scale *
                      std::inner_product(queries[i].data, queries[i].data + d, k[j].data, 0.0));
    const double top = *std::max_element(score.begin(), score.end());
    double sum = 0;
    for (const double s : score) sum += std::exp(s - top);
    for (size_t j = 0; j < votes.size(); ++j) {
      const double p = std::exp(score[j] - top) / sum *
                       (query_weights.empty() ? 1 : query_weights[size_t(i)]) *
                       (row_weights.empty() ? 1 : row_weights[j]);
      votes[j] =
          over_queries == GroupReduce::kMax ? std::max(votes[j], p) : votes[j] + p / double(w);
    }
  }
  return votes;
}

std::vector<double> expect_votes(const Matrix& means, const std::vector<Matrix>& covariances,
                                 const Matrix& k, const Matrix& v, double scale, int64_t sinks) {
  const int64_t n = k.dim(0), d = k.dim(1);
  std::vector<double> votes(size_t(n), 0.0);
  for (size_t g = 0; g < covariances.size(); ++g) {
    std::vector<double> e(size_t(n), 0.0);
    double sum = 0;
    for (int64_t j = sinks; j < n; ++j) {
      double x = 0;
      for (int64_t a = 0; a < d; ++a) {
        x += scale * means[int64_t(g)][a] * k[j][a];
        for (int64_t b = 0; b < d; ++b)
          x += scale * scale / 2 * k[j][a] * covariances[g][a][b] * k[j][b];
      }
      sum += e[size_t(j)] = std::exp(x);
    }
    for (size_t j = 0; j < votes.size(); ++j) votes[j] += e[j] / sum / double(covariances.size());
  }
  double most = 0;
  for (int64_t j = sinks; j < n; ++j) {
    votes[size_t(j)] *= std::sqrt(std::inner_product(v[j].data, v[j].data + d, v[j].data, 0.0));
    most = std::max(most, votes[size_t(j)]);
  }
  std::fill_n(votes.begin(), std::min(sinks, n), most);
  return votes;
}

std::vector<double> reduce(const std::vector<std::vector<double>>& votes, GroupReduce how) {
  std::vector<double> out = votes[0];
  for (size_t g = 1; g < votes.size(); ++g)
    for (size_t j = 0; j < out.size(); ++j)
      out[j] = how == GroupReduce::kMax ? std::max(out[j], votes[g][j]) : out[j] + votes[g][j];
  if (how == GroupReduce::kMean)
    for (double& x : out) x /= double(votes.size());
  return out;
}

std::vector<double> pool(const std::vector<double>& votes, Pooling pooling, int64_t kernel) {
  std::vector<double> out = votes;
  if (pooling == Pooling::kNone) return out;
  if (pooling == Pooling::kBoth) {
    const auto narrow = pool(votes, Pooling::kAvg, kNarrowPool);
    const auto wide = pool(narrow, Pooling::kMax, kernel);
    for (size_t j = 0; j < out.size(); ++j)
      out[j] = std::max(narrow[j], double(kWideShare) * wide[j]);
    return out;
  }
  const int64_t n = std::ssize(votes);
  for (int64_t j = 0; j < n; ++j) {
    double most = -INFINITY, sum = 0;
    for (int64_t i = j - kernel / 2; i <= j + kernel / 2; ++i) {
      if (i < 0 || i >= n) continue;
      most = std::max(most, votes[size_t(i)]);
      sum += votes[size_t(i)];
    }
    out[size_t(j)] = pooling == Pooling::kMax ? most : sum / double(kernel);
  }
  return out;
}

Rows keep_top(const std::vector<float>& votes, int64_t n_top, int64_t window) {
  Rows order(votes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return votes[size_t(a)] > votes[size_t(b)]; });
  if (std::ssize(order) > n_top) order.resize(size_t(n_top));
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < window; ++i) order.push_back(std::ssize(votes) + i);
  return order;
}

std::vector<int64_t> adaptive_split(const std::vector<std::vector<float>>& votes, int64_t n_even,
                                    double floor) {
  std::vector<std::pair<float, size_t>> all;  // vote, head
  for (size_t h = 0; h < votes.size(); ++h)
    for (const float vote : votes[h]) all.push_back({vote, h});
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<double> won(votes.size(), 0);
  for (size_t i = 0; i < std::min(all.size(), votes.size() * size_t(n_even)); ++i)
    won[all[i].second] += 1;
  std::vector<int64_t> out;
  for (const double c : won) out.push_back(std::llround(c * (1 - floor) + floor * double(n_even)));
  return out;
}

}  // namespace ei::ref
