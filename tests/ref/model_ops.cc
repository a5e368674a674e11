#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/ref/ref.h"

namespace ei::ref {

Matrix embed(const std::vector<int32_t>& tokens, const Matrix& table) {
  Matrix out({std::ssize(tokens), table.dim(1)});
  for (size_t i = 0; i < tokens.size(); ++i)
    for (int64_t c = 0; c < table.dim(1); ++c)
      out[static_cast<int64_t>(i)][c] = table[tokens[i]][c];
  return out;
}

Matrix rms_norm(const Matrix& x, const Vector& weight, double eps) {
  Matrix out(x.dims);
  for (int64_t i = 0; i < x.dim(0); ++i) {
    double sum = 0;
    for (const double value : x[i]) sum += value * value;
    const double norm = std::sqrt(sum / double(x.dim(1)) + eps);
    for (int64_t c = 0; c < x.dim(1); ++c) out[i][c] = x[i][c] / norm * weight[c];
  }
  return out;
}

Matrix matmul(const Matrix& x, const Matrix& weight) {
  Matrix out({x.dim(0), weight.dim(0)});
  for (int64_t i = 0; i < x.dim(0); ++i)
    for (int64_t j = 0; j < weight.dim(0); ++j)
      out[i][j] = std::inner_product(x[i].begin(), x[i].end(), weight[j].begin(), 0.0);
  return out;
}

Angles rope_angles(const std::vector<int32_t>& positions, const Vector& inv_freq, double scale) {
  Angles angles{Matrix({std::ssize(positions), inv_freq.dim(0)}), {}};
  angles.sin = angles.cos;
  for (int64_t i = 0; i < angles.cos.dim(0); ++i)
    for (int64_t j = 0; j < inv_freq.dim(0); ++j) {
      // The angle is a float by contract: far into a text its rounding is most of its value.
      const float angle =
          float(positions[static_cast<size_t>(i)]) * static_cast<float>(inv_freq[j]);
      angles.cos[i][j] = std::cos(double(angle)) * scale;
      angles.sin[i][j] = std::sin(double(angle)) * scale;
    }
  return angles;
}

Matrix rope(const Matrix& x, const Angles& angles) {
  const int64_t half = angles.cos.dim(1);
  Matrix out(x.dims);
  for (int64_t i = 0; i < x.dim(0); ++i)
    for (int64_t first = 0; first < x.dim(1); first += 2 * half)
      for (int64_t j = 0; j < half; ++j) {
        const double a = x[i][first + j], b = x[i][first + half + j];
        out[i][first + j] = a * angles.cos[i][j] - b * angles.sin[i][j];
        out[i][first + half + j] = b * angles.cos[i][j] + a * angles.sin[i][j];
      }
  return out;
}

Matrix swiglu(const Matrix& gate, const Matrix& up) {
  Matrix out(gate.dims);
  for (size_t i = 0; i < out.v.size(); ++i)
    out.v[i] = gate.v[i] / (1 + std::exp(-gate.v[i])) * up.v[i];
  return out;
}

double log_probability(const std::vector<double>& logits, int64_t target) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit - top);
  return logits[static_cast<size_t>(target)] - top - std::log(sum);
}

std::vector<double> distribution(std::vector<double> logits, const SamplingParams& params,
                                 const std::vector<LogitBias>& biases,
                                 const std::vector<int32_t>& prompt,
                                 const std::vector<int32_t>& answer) {
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    for (const LogitBias& b : biases)
      if (b.token == id) logits[i] += b.bias;
    const auto in_prompt = std::count(prompt.begin(), prompt.end(), id);
    const auto in_answer = std::count(answer.begin(), answer.end(), id);
    if (in_prompt + in_answer > 0) {
      if (logits[i] > 0) logits[i] /= params.repetition_penalty;
      if (logits[i] < 0) logits[i] *= params.repetition_penalty;
    }
    logits[i] -= params.frequency_penalty * double(in_answer);
    if (in_answer > 0) logits[i] -= params.presence_penalty;
  }
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  if (params.temperature == 0) order.resize(1);
  if (params.top_k > 0 && order.size() > size_t(params.top_k)) order.resize(size_t(params.top_k));
  const auto weight = [&](size_t id) {
    return params.temperature == 0 ? 1
                                   : std::exp((logits[id] - logits[order[0]]) / params.temperature);
  };
  const auto total = [&] {
    return std::accumulate(order.begin(), order.end(), 0.0,
                           [&](double sum, size_t id) { return sum + weight(id); });
  };
  if (params.top_p < 1) {
    const double all = total();
    double sum = 0;
    size_t n = 0;
    while (n == 0 || (n < order.size() && sum < params.top_p * all)) sum += weight(order[n++]);
    order.resize(n);
  }
  std::erase_if(order, [&](size_t id) { return weight(id) < params.min_p; });
  std::vector<double> probability(logits.size(), 0.0);
  const double left = total();
  for (const size_t id : order) probability[id] = weight(id) / left;
  return probability;
}

}  // namespace ei::ref
