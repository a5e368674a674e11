#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/ref/ref.h"

namespace ei::ref {

Bounds key_bounds(const Matrix& k, int64_t block) {
  const int64_t n_blocks = (k.dim(0) + block - 1) / block;
  Bounds bounds{Matrix({n_blocks, k.dim(1)}, INFINITY), Matrix({n_blocks, k.dim(1)}, -INFINITY)};
  for (int64_t r = 0; r < k.dim(0); ++r)
    for (int64_t c = 0; c < k.dim(1); ++c) {
      bounds.min[r / block][c] = std::min(bounds.min[r / block][c], k[r][c]);
      bounds.max[r / block][c] = std::max(bounds.max[r / block][c], k[r][c]);
    }
  return bounds;
}

Scores score_blocks(const Matrix& q, int64_t begin, int64_t segment, double scale,
                    const std::vector<Bounds>& bounds, int64_t block) {
  const int64_t kv_heads = std::ssize(bounds), d = bounds[0].min.dim(1);
  const int64_t group = q.dim(1) / (kv_heads * d);
  const int64_t n_segments = (q.dim(0) + segment - 1) / segment;
  const int64_t most = (begin / segment + n_segments - 1) * segment / block;
  Scores out{Array<double, 3>({kv_heads, n_segments, most}), Matrix({kv_heads, n_segments})};
  for (int64_t k = 0; k < kv_heads; ++k)
    for (int64_t s = 0; s < n_segments; ++s) {
      const int64_t past = (begin + s * segment) / block;
      for (int64_t b = 0; b < past; ++b) {
        double sum = 0;
        for (int64_t h = k * group; h < (k + 1) * group; ++h) {
          double with_min = 0, with_max = 0;
          for (int64_t c = 0; c < d; ++c) {
            double low = INFINITY, high = -INFINITY;
            for (int64_t r = s * segment; r < std::min(q.dim(0), (s + 1) * segment); ++r) {
              low = std::min(low, q[r][h * d + c]);
              high = std::max(high, q[r][h * d + c]);
            }
            with_min += (low + high) / 2 * bounds[size_t(k)].min[b][c];
            with_max += (low + high) / 2 * bounds[size_t(k)].max[b][c];
          }
          sum += std::max(with_min, with_max);
        }
        out.score[k][s][b] = scale * sum / double(group);
      }
      if (past == 0) continue;
      const double* score = out.score[k][s].data;
      const double top = *std::max_element(score, score + past);
      double z = 0, entropy = 0;
      for (int64_t b = 0; b < past; ++b) z += std::exp(score[b] - top);
      for (int64_t b = 0; b < past; ++b) {
        const double log_p = score[b] - top - std::log(z);
        entropy -= std::exp(log_p) * log_p;
      }
      out.entropy[k][s] = entropy;
    }
  return out;
}

Matrix allocate_budget(const Matrix& entropy, int64_t first_segment, int64_t n_segments,
                       const BudgetRule& rule) {
  const int64_t heads = entropy.dim(0), end = first_segment + n_segments;
  Matrix budget({heads, end});
  for (int64_t h = 0; h < heads; ++h) {
    const auto e = entropy[h];
    double current = rule.base;
    for (int64_t s = 0; s < end; ++s) {
      bool rigid = true;
      for (int64_t t = 1; t < (rule.rigid_whole_prompt ? end : s + 1); ++t)
        rigid &= static_cast<float>(e[t]) < rule.e_t;
      if (s == 0 || rigid) {
        current = rule.base;
      } else {
        double rho = rule.delta_t;
        if (s > 1) rho = std::clamp((e[s] - e[s - 1]) / (e[s - 1] + 1e-9), 0.0, 1.0 + rule.delta_t);
        current = std::clamp(current + double(rule.alpha) * rule.base * (rho - rule.delta_t),
                             double(rule.base), double(rule.max_factor) * rule.base);
      }
      budget[h][s] = current;
    }
  }
  Matrix out({heads, n_segments});
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < n_segments; ++i) {
      out[h][i] = budget[h][first_segment + i];
      for (int64_t other = 0; rule.max_over_heads && other < heads; ++other)
        out[h][i] = std::max(out[h][i], budget[other][first_segment + i]);
    }
  return out;
}

int32_t blocks_of(double tokens, int64_t segment_index, int64_t segment, int64_t block) {
  return int32_t(
      std::min(std::floor(tokens / double(block)), double(segment_index * segment / block)));
}

Rows select_blocks(const std::vector<float>& score, int64_t count, Rank rank, int64_t sink,
                   int64_t recent) {
  const int64_t past = std::ssize(score);
  std::vector<float> value = score;
  if (rank == Rank::kProbability && past > 0) {
    const float top = *std::max_element(score.begin(), score.end());
    for (float& v : value) v = std::exp(v - top);  // the sum of them changes no order
  }
  for (int64_t b = 0; b < past; ++b)
    if (b < sink || b >= past - recent) value[size_t(b)] = INFINITY;
  Rows order(size_t(past), 0);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return value[size_t(a)] > value[size_t(b)]; });
  order.resize(size_t(count));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<double> attend(const double* q, const Matrix& k, const Matrix& v, const Rows& rows,
                           double scale) {
  const int64_t d = k.dim(1);
  std::vector<double> score;
  for (const int64_t r : rows)
    score.push_back(scale * std::inner_product(q, q + d, k[r].begin(), 0.0));
  const double top = *std::max_element(score.begin(), score.end());
  std::vector<double> out(size_t(d), 0.0);
  double sum = 0;
  for (size_t j = 0; j < rows.size(); ++j) {
    const double p = std::exp(score[j] - top);
    sum += p;
    for (int64_t c = 0; c < d; ++c) out[size_t(c)] += p * v[rows[j]][c];
  }
  for (double& x : out) x /= sum;
  return out;
}

}  // namespace ei::ref
