#include "ei/model/gguf_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei {
namespace {

struct GgufArchitecture {
  std::string_view name, in_config;
  Family family;
  bool interleaved;  // RoPE's pairs are neighbours: rows of q and k are in that order
};
constexpr std::array kGgufArchitectures = {
    GgufArchitecture{"llama", "LlamaForCausalLM", Family::kLlama, true},
    GgufArchitecture{"qwen2", "Qwen2ForCausalLM", Family::kQwen2, false},
    GgufArchitecture{"qwen3", "Qwen3ForCausalLM", Family::kQwen3, false},
    GgufArchitecture{"pangu-embedded", "PanguEmbeddedForCausalLM", Family::kPangu, false}};

const GgufArchitecture& find_gguf_architecture(const GgufMetadata& keys) {
  const std::string_view name = keys.string("general.architecture");
  std::string known;
  for (const GgufArchitecture& architecture : kGgufArchitectures) {
    if (architecture.name == name) return architecture;
    known += known.empty() ? "" : ", ";
    known += architecture.name;
  }
  fail("{}: key general.architecture is {}, which is not supported; these are: {}", keys.where(),
       shown(name), known);
}

// Names of a layer's tensors behind "blk.N." and "model.layers.N.".
constexpr std::pair<std::string_view, std::string_view> kLayerNames[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"}};

// Divisors of the frequencies, one for each pair of a head.
std::vector<float> rope_factors(const GgufFile& file, int64_t head_dim) {
  const TensorEntry* entry = file.find("rope_freqs.weight");
  if (entry == nullptr) return {};
  const TensorInfo& tensor = *entry->tensor;
  require(tensor.dtype == "F32" && tensor.shape == std::vector{head_dim / 2},
          "{}: tensor rope_freqs.weight is {} [{}], expected F32 [{}]", *entry->file, tensor.dtype,
          fmt::join(tensor.shape, ", "), head_dim / 2);
  std::vector<float> factors(static_cast<size_t>(head_dim / 2));
  std::memcpy(factors.data(), tensor.data.data(), tensor.data.size());
  for (const float factor : factors)
    require(factor > 0 && std::isfinite(factor),
            "{}: tensor rope_freqs.weight has the factor {}, expected more than 0", *entry->file,
            factor);
  return factors;
}

}  // namespace

std::string hugging_face_name(std::string_view name) {
  if (name == "token_embd.weight") return "model.embed_tokens.weight";
  if (name == "output_norm.weight") return "model.norm.weight";
  if (name == "output.weight") return "lm_head.weight";
  constexpr std::string_view kLayer = "blk.";
  const size_t dot = name.find('.', kLayer.size()), last = name.rfind('.');
  if (!name.starts_with(kLayer) || dot == name.npos || last <= dot) return std::string(name);
  for (const auto& [ours, theirs] : kLayerNames)
    if (name.substr(dot + 1, last - dot - 1) == ours)
      return fmt::format("model.layers.{}.{}{}", name.substr(kLayer.size(), dot - kLayer.size()),
                         theirs, name.substr(last));
  return std::string(name);
}

ModelConfig gguf_config(const GgufFile& file) {
  // Bounds that no checkpoint comes near, small enough that products of any three fit 64 bits.
  constexpr int64_t kMaxWidth = 1 << 20, kMaxHeads = 4096, kMaxHeadDim = 1024, kMaxLayers = 1024;
  constexpr int64_t kMaxVocab = 1 << 24, kMaxPositions = 1 << 24;
  constexpr double kMaxFactor = 1e6;
  const GgufMetadata& keys = file.metadata();
  const GgufArchitecture& architecture = find_gguf_architecture(keys);
  const auto key = [&](std::string_view name) {
    return fmt::format("{}.{}", architecture.name, name);
  };
  const auto unsupported = [&](bool ok, std::string_view name, std::string_view what) {
    require(ok, "{}: key {}: {} is not supported", keys.where(), key(name), what);
  };

  ModelConfig config;
  config.architecture = architecture.in_config;
  config.family = architecture.family;
  config.hidden = keys.integer(key("embedding_length"), 1, kMaxWidth);
  config.intermediate = keys.integer(key("feed_forward_length"), 1, kMaxWidth);
  config.n_layers = static_cast<int>(keys.integer(key("block_count"), 1, kMaxLayers));
  config.n_heads = keys.integer(key("attention.head_count"), 1, kMaxHeads);
  config.n_kv_heads =
      keys.integer(key("attention.head_count_kv"), 1, config.n_heads, config.n_heads);
  require(config.n_heads % config.n_kv_heads == 0, "{}: key {} is {}, expected a divisor of {}",
          keys.where(), key("attention.head_count_kv"), config.n_kv_heads, config.n_heads);
  config.head_dim = keys.integer(key("attention.key_length"), 1, kMaxHeadDim,
                                 std::max<int64_t>(1, config.hidden / config.n_heads));
  require(config.head_dim % 2 == 0 && config.head_dim <= kMaxHeadDim,
          "{}: heads of {} dimensions, expected an even number from 2 to {}", keys.where(),
          config.head_dim, kMaxHeadDim);
  for (const char* name : {"attention.value_length", "rope.dimension_count"})
    unsupported(keys.integer(key(name), 0, kMaxHeadDim, config.head_dim) == config.head_dim, name,
                fmt::format("another number than {}, the dimensions of a head", config.head_dim));
  config.rms_norm_eps =
      static_cast<float>(keys.number(key("attention.layer_norm_rms_epsilon"), 1e-12, 1));
  config.max_positions = keys.integer(key("context_length"), 1, kMaxPositions);
  unsupported(keys.integer(key("expert_count"), 0, INT32_MAX, 0) == 0, "expert_count",
              "a mixture of experts");
  const int64_t window = keys.integer(key("attention.sliding_window"), 0, INT32_MAX, 0);
  unsupported(window == 0 || window >= config.max_positions, "attention.sliding_window",
              fmt::format("a window of {}, less than the context,", window));

  RopeConfig& rope = config.rope;
  rope.interleaved = architecture.interleaved;
  rope.theta = keys.number(key("rope.freq_base"), 1.001, 1e12, rope.theta);
  rope.factors = rope_factors(file, config.head_dim);
  const std::string_view scaling = keys.string(key("rope.scaling.type"), "none");
  const char* factor_key =
      keys.has(key("rope.scaling.factor")) ? "rope.scaling.factor" : "rope.scale_linear";  // of old
  rope.factor = keys.number(key(factor_key), 0, kMaxFactor, 1);
  if (rope.factor == 0) rope.factor = 1;
  if (scaling == "yarn") {
    rope.type = RopeType::kYarn;
    rope.original_positions = keys.integer(key("rope.scaling.original_context_length"), 1,
                                           kMaxPositions, config.max_positions);
    const double factor = keys.number(key("rope.scaling.attn_factor"), 1e-3, 1e3, 1);
    rope.attention_factor = factor * (1 + 0.1 * std::log(rope.factor));
  } else {
    unsupported(scaling == "none" || scaling == "linear", "rope.scaling.type", shown(scaling));
    if (rope.factor != 1) rope.type = RopeType::kLinear;
  }

  const TensorEntry* embedding = file.find("token_embd.weight");
  require(embedding != nullptr && embedding->tensor->shape.size() == 2,
          "{}: tensor token_embd.weight is missing or no matrix", file.path());
  config.vocab_size = embedding->tensor->shape[0];
  require(config.vocab_size >= 1 && config.vocab_size <= kMaxVocab,
          "{}: token_embd.weight has {} rows, expected 1 to {}", *embedding->file,
          config.vocab_size, kMaxVocab);
  config.tie_word_embeddings = file.find("output.weight") == nullptr;
  config.qk_norm = config.family == Family::kQwen3;
  config.qkv_bias = file.find("blk.0.attn_q.bias") != nullptr;
  config.o_bias = file.find("blk.0.attn_output.bias") != nullptr;
  return config;
}

}  // namespace ei
