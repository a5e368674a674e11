#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ei/io/json.h"
#include "ei/model/rope.h"

namespace ei {

// The checkpoints that are read. All are the same decoder: RMSNorm, grouped-query attention with
// RoPE, SwiGLU. They differ in biases, qk-norm and how config.json is spelt.
enum class Family : uint8_t { kLlama, kQwen2, kQwen3, kMistral, kPangu };

// How the matrices of a checkpoint are stored where they are quantized.
struct Quantization {
  enum class Method : uint8_t { kNone, kFp8, kAwq, kGptq, kCompressedTensors };
  Method method = Method::kNone;
  bool zero_less_one = false;  // GPTQ's zero points are stored less 1
  // modules_to_not_convert, or compressed-tensors' ignore: modules that are not, or parts of their
  // names. Of all others, as of those that a regular expression ("re:") may mean, the tensors say
  // whether they are.
  std::vector<std::string> plain;

  bool leaves_plain(std::string_view module) const;
};

struct ModelConfig {
  std::string architecture;  // as config.json names it: "LlamaForCausalLM", ...
  Family family = Family::kLlama;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int n_layers = 0;
  int64_t n_heads = 0;
  int64_t n_kv_heads = 0;  // divides n_heads
  int64_t head_dim = 0;    // even; n_heads * head_dim may differ from hidden
  int64_t vocab_size = 0;  // rows of the embedding: may exceed the tokenizer's ids
  float rms_norm_eps = 1e-5f;
  int64_t max_positions =
      0;  // tokens of context the checkpoint was made for, RoPE scaling included
  RopeConfig rope;
  Quantization quantization;
  bool tie_word_embeddings = false;
  bool qk_norm = false;   // RMSNorm on every head of q and k before RoPE
  bool qkv_bias = false;  // what the family or config.json says; a checkpoint's tensors decide
  bool o_bias = false;
  std::vector<int32_t> eos_ids;  // as the file has them: some may be outside of the vocabulary
  // So many ranks share the model, and this is the share of one: heads and `intermediate` are its
  // own, and 1 / n_ranks of the head's rows. To all that uses it, it is a narrower model.
  int n_ranks = 1;
};

// The share of each of n_ranks. Throws Error naming `where` and what they cannot divide.
ModelConfig share_of(ModelConfig whole, int n_ranks, std::string_view where);

// Reads config.json, in the spellings of transformers 4 and 5. Throws Error naming `where`, the
// field, the value and what is possible: for wrong types and ranges, and for what is not supported
// (other architectures and rope types, a window shorter than the context, other ways of
// quantization, ...).
ModelConfig parse_config(const Json& json, std::string_view where);
ModelConfig load_config(const std::filesystem::path& dir);

// Sampling defaults of generation_config.json; what it does not say is left empty.
struct GenerationConfig {
  std::vector<int32_t> eos_ids;
  std::optional<bool> do_sample;
  std::optional<double> temperature;
  std::optional<int64_t> top_k;  // 0: all
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
};
GenerationConfig parse_generation_config(const Json& json, std::string_view where);
GenerationConfig load_generation_config(const std::filesystem::path& dir);  // no file: all empty

}  // namespace ei
