#include <algorithm>
#include <cmath>
#include <utility>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"
#include "ei/base/half.h"
#include "ei/model/model.h"
#include "ei/model/weight_source.h"

namespace ei {
namespace {

// splitmix64: a hash of a counter.
uint64_t mix(uint64_t z) {
  z *= 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// Nearly normal, mean 0, deviation 1: the sum of four bytes of `bits`, brought to that.
float normal(uint32_t bits) {
  const uint32_t sum = (bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24);
  return (static_cast<float>(sum) - 510) * (1 / 147.8f);
}

class RandomSource : public WeightSource {
 public:
  RandomSource(Backend& backend, const ModelConfig& config, uint64_t seed)
      : backend_(backend), config_(config), next_(seed << 40) {}

  bool has(const std::string& name) const override {
    return name.ends_with("o_proj.bias") ? config_.o_bias : config_.qkv_bias;
  }

  // Already on the device. Rows are scaled so that outputs have deviation 1, but for
  //  - the embedding, whose rows are the stream itself;
  //  - what is added to the stream, 2 per layer, which together shall not outgrow it;
  //  - queries: each KV head's by its own factor, from 1/16 to 16, which sets how much its scores,
  //    and so the entropy of its attention, vary.
  Weight matrix(const std::string& name, int64_t rows, int64_t cols, Part part) override {
    part_ = part;
    float scale = 1 / std::sqrt(static_cast<float>(cols));
    if (name.ends_with("embed_tokens.weight")) scale = 1;
    if (name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight"))
      scale /= std::sqrt(2 * static_cast<float>(config_.n_layers));
    const bool queries = name.ends_with("q_proj.weight");
    const int64_t group_rows = queries ? rows / config_.n_kv_heads : rows;

    Buffer buffer(backend_, rows * cols * dtype_bytes(DType::kBF16));
    for (int64_t row = 0; row < rows; row += group_rows)
      fill(static_cast<char*>(buffer.data()) + row * cols * dtype_bytes(DType::kBF16),
           group_rows * cols, queries ? scale * spread() : scale);
    Weight weight = {buffer.data(), WeightFormat::kBF16, rows, cols};
    if (name.find(".layers.") != name.npos) weight = backend_.place_factor(weight);
    if (weight.data == buffer.data()) buffers_.push_back(std::move(buffer));
    return weight;
  }

  std::vector<float> vector(const std::string& name, int64_t size, Part part) override {
    part_ = part;
    // qk-norm undoes what scale the queries have: there the layers differ, not the heads.
    const float norm = name.ends_with("q_norm.weight") ? spread() : 1;
    std::vector<float> values(static_cast<size_t>(size));
    for (float& value : values)
      value = name.ends_with(".bias") ? 0.1f * number() : norm * (1 + 0.1f * number());
    return values;
  }

  Weight read(const Weight& weight, int64_t) override { return weight; }

  std::vector<Buffer> take_buffers() { return std::move(buffers_); }

 private:
  // Of what ranks have a part each, they draw other numbers.
  uint64_t bits(uint64_t at) const {
    return mix(at ^
               (part_ == Part::kAll ? 0 : static_cast<uint64_t>(backend_.ranks().rank()) << 56));
  }
  float number() { return normal(static_cast<uint32_t>(bits(next_++))); }
  float spread() { return std::exp2(static_cast<float>(bits(next_++) >> 40) * 0x1p-21f - 4); }

  void fill(char* device, int64_t n, float scale) {
    constexpr int64_t kPiece = 1 << 22;  // threads are started, and copies, only so often
    std::vector<uint16_t> host(static_cast<size_t>(std::min(n + n % 2, kPiece)));
    for (int64_t begin = 0; begin < n; begin += kPiece) {
      const int64_t size = std::min(kPiece, n - begin);
#pragma omp parallel for
      for (int64_t i = 0; i < size; i += 2) {
        const uint64_t pair = bits(next_ + static_cast<uint64_t>(i / 2));
        const auto at = static_cast<size_t>(i);
        host[at] = to_bf16(scale * normal(static_cast<uint32_t>(pair)));
        host[at + 1] = to_bf16(scale * normal(static_cast<uint32_t>(pair >> 32)));
      }
      next_ += static_cast<uint64_t>((size + 1) / 2);
      const int64_t width = dtype_bytes(DType::kBF16);
      backend_.copy_in(device + begin * width, host.data(), size * width);
    }
  }

  Backend& backend_;
  const ModelConfig& config_;
  uint64_t next_;           // counter that is hashed
  Part part_ = Part::kAll;  // of what is drawn now
  std::vector<Buffer> buffers_;
};

}  // namespace

Model Model::random(Backend& backend, const ModelConfig& config, uint64_t seed) {
  Model model(backend, share_of(config, backend.ranks().size(), "a random model"));
  RandomSource source(backend, model.config_, seed);
  model.take(source);
  if (config.tie_word_embeddings) model.tie_head();
  model.memory_ = std::make_shared<std::vector<Buffer>>(source.take_buffers());
  return model;
}

}  // namespace ei
