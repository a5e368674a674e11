#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "ei/model/model.h"
#include "ei/ops/backend.h"
#include "ei/ops/buffer.h"

namespace ei {

// What Estimate::kSketch needs of a model: for every layer and KV head the first principal
// directions of its keys, RoPE applied, over a text that was read densely (METHOD.md 6).
class Sketch {
 public:
  struct Shape {
    int64_t n_layers = 0;
    int64_t n_kv_heads = 0;
    int64_t head_dim = 0;

    // Half of the head, in fours; the units that multiply bytes take 32 or 64 as fast as fewer.
    int64_t n_directions() const { return std::clamp<int64_t>(head_dim / 8 * 4, 4, 96); }
    int64_t layer_size() const { return n_kv_heads * n_directions() * (head_dim + 1); }
    int64_t size() const { return n_layers * layer_size(); }
  };

  // `values`, as measure_sketch() returns them, on the device.
  Sketch(Backend& backend, const Shape& shape, std::span<const float> values);

  SketchBasis layer(int layer) const;

 private:
  Shape shape_;
  DeviceArray<float, 1> values_;
};

Sketch::Shape sketch_shape(const ModelConfig& config);

// The keys [n_layers, n_kv_heads, n, d] that the model computes of a text, read densely in a float
// cache, and turned by RoPE to positions that are spread over all that the model knows.
// Throws Error when there is no memory for it. `values`, if it is given, gets the values.
std::vector<float> read_keys(Backend& backend, const Model& model, std::span<const int32_t> tokens,
                             std::vector<float>* values = nullptr);

// Of these keys, for each layer: directions [n_kv_heads, n_directions, d], and the projections on
// them of the keys' mean [n_kv_heads, n_directions]. A head with fewer keys than directions gets
// some of no use, which do no harm.
std::vector<float> measure_sketch(const Sketch::Shape& shape, std::span<const float> keys);

}  // namespace ei
