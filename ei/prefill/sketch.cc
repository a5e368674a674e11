#include "ei/prefill/sketch.h"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>

#include "ei/base/fail.h"
#include "ei/model/rope.h"
#include "ei/prefill/prefill.h"

namespace ei {

Sketch::Shape sketch_shape(const ModelConfig& config) {
  return {
      .n_layers = config.n_layers, .n_kv_heads = config.n_kv_heads, .head_dim = config.head_dim};
}

Sketch::Sketch(Backend& backend, const Shape& shape, std::span<const float> values)
    : shape_(shape), values_(backend, values) {
  require(std::ssize(values) == shape.size(), "sketch: {} values, expected {}", values.size(),
          shape.size());
}

SketchBasis Sketch::layer(int layer) const {
  const int64_t w = shape_.n_directions();
  const float* const at = values_.view().data + layer * shape_.layer_size();
  return {.directions = {at, {shape_.n_kv_heads, w, shape_.head_dim}},
          .mean = {at + shape_.n_kv_heads * w * shape_.head_dim, {shape_.n_kv_heads, w}}};
}

namespace {

// Turns the keys of a text of n tokens to where they would be if it reached over all positions that
// the model knows: further on the mean of keys is another than at the first (METHOD.md 6).
void spread(std::span<float> keys, int64_t n, const ModelConfig& config) {
  const int64_t d = config.head_dim, half = d / 2;
  const RopeFrequencies rope = rope_frequencies(config.rope, d);
  const int64_t reach = std::max(n, config.max_positions);
  for (int64_t position = 0; position < n; ++position)
    for (int64_t j = 0; j < half; ++j) {
      const auto further = static_cast<double>(position * reach / n - position);
      const double angle = further * double(rope.inv_freq[static_cast<size_t>(j)]);
      const auto c = static_cast<float>(std::cos(angle)), s = static_cast<float>(std::sin(angle));
      // The same for every layer and head.
      for (int64_t i = position; i < std::ssize(keys) / d; i += n) {
        float* const key = keys.data() + i * d;
        float& a = key[config.rope.interleaved ? 2 * j : j];
        float& b = key[config.rope.interleaved ? 2 * j + 1 : j + half];
        const float x = a;
        a = x * c - b * s;
        b = b * c + x * s;
      }
    }
}

}  // namespace

std::vector<float> read_keys(Backend& backend, const Model& model, std::span<const int32_t> tokens,
                             std::vector<float>* values) {
  const ModelConfig& config = model.config();
  const int64_t n = std::ssize(tokens), d = config.head_dim;
  PrefillPolicy policy = PrefillPolicy::dense();
  policy.segment = n;
  policy.block = 1;
  const KvShape shape = {.n_layers = config.n_layers,
                         .n_kv_heads = config.n_kv_heads,
                         .layout = {.dtype = DType::kF32, .head_dim = d, .rows = n},
                         .max_tokens = n};
  PagePool pool(backend, shape.layout.bytes());
  KvCache cache(backend, pool, shape);
  QueryWindow window(backend, config.n_layers, 0, config.n_heads * d);
  Activations act(backend, config, n, 1);
  PrefillPlan plan(backend, policy,
                   {.n_layers = config.n_layers,
                    .n_heads = config.n_heads,
                    .n_kv_heads = config.n_kv_heads,
                    .head_dim = d,
                    .max_tokens = n,
                    .page = n,
                    .chunk = n});
  plan.begin(n, 0);
  prefill_chunk(backend, model, act, cache, window, plan, tokens, Hidden::kLast);

  std::vector<float> keys(static_cast<size_t>(config.n_layers * config.n_kv_heads * n * d));
  if (values != nullptr) values->resize(keys.size());
  int64_t at = 0;
  const int64_t n_bytes = n * d * int64_t{sizeof(float)};
  for (int l = 0; l < config.n_layers; ++l)
    for (int64_t h = 0; h < config.n_kv_heads; ++h, at += n * d) {
      const char* page = static_cast<const char*>(cache.page(l, h, 0)->data());
      backend.copy_out(keys.data() + at, page, n_bytes);
      if (values != nullptr) backend.copy_out(values->data() + at, page + n_bytes, n_bytes);
    }
  spread(keys, n, config);
  return keys;
}

std::vector<float> measure_sketch(const Sketch::Shape& shape, std::span<const float> keys) {
  const int64_t d = shape.head_dim, w = shape.n_directions();
  const int64_t n_heads = shape.n_layers * shape.n_kv_heads;
  const int64_t n = std::ssize(keys) / (n_heads * d);
  std::vector<float> values(static_cast<size_t>(shape.size()));
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  for (int64_t i = 0; i < n_heads; ++i) {
    const Matrix k =
        Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
            keys.data() + i * n * d, n, d)
            .cast<double>();
    const Eigen::VectorXd mean = k.colwise().mean();
    const Matrix centred = k.rowwise() - mean.transpose();
    const Eigen::SelfAdjointEigenSolver<Matrix> solver(centred.transpose() * centred);
    require(solver.info() == Eigen::Success,
            "the keys of layer {} have no principal directions; its weights are damaged (download "
            "them again)",
            i / shape.n_kv_heads);
    float* const layer = values.data() + i / shape.n_kv_heads * shape.layer_size();
    const int64_t h = i % shape.n_kv_heads;
    float* const directions = layer + h * w * d;
    float* const means = layer + shape.n_kv_heads * w * d + h * w;
    for (int64_t r = 0; r < w; ++r) {  // eigenvalues ascend
      const auto direction = solver.eigenvectors().col(std::max<int64_t>(0, d - 1 - r));
      for (int64_t c = 0; c < d; ++c) directions[r * d + c] = static_cast<float>(direction[c]);
      means[r] = static_cast<float>(direction.dot(mean));
    }
  }
  return values;
}

}  // namespace ei
