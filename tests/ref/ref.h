#pragma once

#include <functional>
#include <vector>

#include "ei/ops/allocate_budget.h"
#include "ei/ops/sample.h"
#include "ei/ops/select_blocks.h"
#include "ei/policy/decode_policy.h"
#include "tests/support/array.h"

// The ops once more in double and plain loops, straight from the formulas of METHOD.md: what every
// backend is compared with.
namespace ei::ref {

using test::Array;
using test::Matrix;
using test::Vector;
using Rows = std::vector<int64_t>;

Matrix embed(const std::vector<int32_t>& tokens, const Matrix& table);
Matrix rms_norm(const Matrix& x, const Vector& weight, double eps);
Matrix matmul(const Matrix& x, const Matrix& weight);  // x weight^T
struct Angles {
  Matrix cos, sin;
};
Angles rope_angles(const std::vector<int32_t>& positions, const Vector& inv_freq, double scale);
Matrix rope(const Matrix& x, const Angles& angles);
Matrix swiglu(const Matrix& gate, const Matrix& up);

struct Bounds {
  Matrix min, max;  // [n_blocks, d]
};
Bounds key_bounds(const Matrix& k, int64_t block);

struct Scores {
  Array<double, 3> score;  // [n_kv_heads, n_segments, past blocks of the last]
  Matrix entropy;          // [n_kv_heads, n_segments], of the chunk's segments alone
};
Scores score_blocks(const Matrix& q, int64_t begin, int64_t segment, double scale,
                    const std::vector<Bounds>& bounds, int64_t block);

// In tokens, [n_kv_heads, n_segments].
Matrix allocate_budget(const Matrix& entropy, int64_t first_segment, int64_t n_segments,
                       const BudgetRule& rule);
// What a budget is in blocks, for a segment that is not dense.
int32_t blocks_of(double tokens, int64_t segment_index, int64_t segment, int64_t block);

// Ascending, of one row of scores.
Rows select_blocks(const std::vector<float>& score, int64_t count, Rank rank, int64_t sink,
                   int64_t recent);

// Attention of one query to the rows of k and v that are listed.
std::vector<double> attend(const double* q, const Matrix& k, const Matrix& v, const Rows& rows,
                           double scale);

// Votes of one query head: `queries` [w, d], oldest first; weights [w] of them, [n - w] of the
// rows, or none.
std::vector<double> vote(const Matrix& queries, const Matrix& k, double scale,
                         GroupReduce over_queries = GroupReduce::kMean,
                         const std::vector<double>& query_weights = {},
                         const std::vector<double>& row_weights = {});
// Of one KV head, by the means and covariances of its query heads.
std::vector<double> expect_votes(const Matrix& means, const std::vector<Matrix>& covariances,
                                 const Matrix& k, const Matrix& v, double scale, int64_t sinks);
std::vector<double> reduce(const std::vector<std::vector<double>>& votes, GroupReduce how);
std::vector<double> pool(const std::vector<double>& votes, Pooling pooling, int64_t kernel);
Rows keep_top(const std::vector<float>& votes, int64_t n_top, int64_t window);
// AdaKV: how many votes each head of a layer keeps when together they keep n_even each.
std::vector<int64_t> adaptive_split(const std::vector<std::vector<float>>& votes, int64_t n_even,
                                    double floor);

double log_probability(const std::vector<double>& logits, int64_t target);
// The probability of every token to be drawn after all biases, penalties and filters.
std::vector<double> distribution(std::vector<double> logits, const SamplingParams& params,
                                 const std::vector<LogitBias>& biases,
                                 const std::vector<int32_t>& prompt,
                                 const std::vector<int32_t>& answer);

}  // namespace ei::ref
