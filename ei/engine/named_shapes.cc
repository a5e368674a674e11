#include "ei/engine/named_shapes.h"

#include <fmt/ranges.h>

#include <array>

#include "ei/base/fail.h"
#include "ei/model/config.h"

namespace ei {
namespace {

struct Shape {
  const char* name;
  const char* architecture;
  Family family;
  int64_t hidden;
  int n_layers;
  int64_t n_heads, n_kv_heads, head_dim, intermediate, vocab_size;
  double theta;
  double llama3_factor;  // 0: plain RoPE
  float eps;
  bool tied;
};

// As in the checkpoints' config.json.
constexpr std::array kShapes = {
    Shape{"llama-3.2-1b", "LlamaForCausalLM", Family::kLlama, 2048, 16, 32, 8, 64, 8192, 128256,
          5e5, 32, 1e-5f, true},
    Shape{"llama-3.1-8b", "LlamaForCausalLM", Family::kLlama, 4096, 32, 32, 8, 128, 14336, 128256,
          5e5, 8, 1e-5f, false},
    Shape{"llama-3.3-70b", "LlamaForCausalLM", Family::kLlama, 8192, 80, 64, 8, 128, 28672, 128256,
          5e5, 8, 1e-5f, false},
    Shape{"qwen2.5-7b", "Qwen2ForCausalLM", Family::kQwen2, 3584, 28, 28, 4, 128, 18944, 152064,
          1e6, 0, 1e-6f, false},
    Shape{"qwen3-4b", "Qwen3ForCausalLM", Family::kQwen3, 2560, 36, 32, 8, 128, 9728, 151936, 1e6,
          0, 1e-6f, true},
    Shape{"openpangu-1b", "PanguEmbeddedForCausalLM", Family::kPangu, 1536, 26, 12, 6, 128, 6144,
          153376, 4e6, 0, 1e-5f, true},
    Shape{"openpangu-7b", "PanguEmbeddedForCausalLM", Family::kPangu, 4096, 34, 32, 8, 128, 12800,
          153376, 1.6e7, 0, 1e-5f, false},
    Shape{"smollm2-135m", "LlamaForCausalLM", Family::kLlama, 576, 30, 9, 3, 64, 1536, 49152, 1e5,
          0, 1e-5f, true},
    Shape{"needle-8m", "LlamaForCausalLM", Family::kLlama, 256, 8, 8, 2, 64, 704, 4096, 1e6, 0,
          1e-5f, true},
};

// Random weights have learnt no context length: as much as is commonly asked for.
constexpr int64_t kMaxPositions = 131072;

}  // namespace

std::vector<std::string> shape_names() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

ModelConfig named_shape(std::string_view name) {
  for (const Shape& s : kShapes) {
    if (name != s.name) continue;
    ModelConfig config;
    config.architecture = s.architecture;
    config.family = s.family;
    config.hidden = s.hidden;
    config.intermediate = s.intermediate;
    config.n_layers = s.n_layers;
    config.n_heads = s.n_heads;
    config.n_kv_heads = s.n_kv_heads;
    config.head_dim = s.head_dim;
    config.vocab_size = s.vocab_size;
    config.rms_norm_eps = s.eps;
    config.max_positions = kMaxPositions;
    config.rope.theta = s.theta;
    if (s.llama3_factor > 0) {
      config.rope.type = RopeType::kLlama3;
      config.rope.factor = s.llama3_factor;
      config.rope.original_positions = 8192;
    }
    config.tie_word_embeddings = s.tied;
    config.qk_norm = s.family == Family::kQwen3;
    config.qkv_bias = s.family == Family::kQwen2 || s.family == Family::kPangu;
    config.o_bias = s.family == Family::kPangu;
    return config;
  }
  fail("{}: no such shape; there are {}", name, fmt::join(shape_names(), ", "));
}

}  // namespace ei
