#include "tests/support/needle_gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "ei/base/half.h"
#include "ei/io/json.h"
#include "ei/io/safetensors.h"
#include "tests/support/files.h"
#include "tests/support/gguf.h"

namespace ei::test {
namespace {

constexpr int kBlock = 32;

void put_f16(std::string& to, float value) {
  const uint16_t bits = to_f16(value);
  to.append(reinterpret_cast<const char*>(&bits), sizeof bits);
}

// A scale, then whole numbers of 8 bits.
void put_q8_0(std::string& to, const float* x) {
  float most = 0;
  for (int i = 0; i < kBlock; ++i) most = std::max(most, std::abs(x[i]));
  const float scale = most / 127;
  put_f16(to, scale);
  for (int i = 0; i < kBlock; ++i)
    to += static_cast<char>(scale > 0 ? std::lround(x[i] / scale) : 0);
}

// A scale, then numbers of 4 bits from -8 on: those of the second half are the upper halves of
// bytes.
void put_q4_0(std::string& to, const float* x) {
  const float most =
      *std::max_element(x, x + kBlock, [](float a, float b) { return std::abs(a) < std::abs(b); });
  const float scale = most / -8;
  put_f16(to, scale);
  const auto number = [&](float value) {
    return std::clamp(scale != 0 ? int(std::floor(value / scale + 8.5f)) : 8, 0, 15);
  };
  for (int i = 0; i < kBlock / 2; ++i)
    to += static_cast<char>(number(x[i]) | number(x[i + kBlock / 2]) << 4);
}

// The two dimensions that RoPE turns lie beside each other in such files, half a head apart in
// Hugging Face's.
std::vector<float> beside(const std::vector<float>& rows, int64_t n_heads, int64_t cols) {
  std::vector<float> to(rows.size());
  const int64_t half = std::ssize(rows) / cols / n_heads / 2;
  for (int64_t h = 0; h < n_heads; ++h)
    for (int64_t i = 0; i < 2 * half; ++i)
      std::copy_n(rows.begin() + (2 * h * half + i) * cols, cols,
                  to.begin() + (2 * h * half + i % half * 2 + i / half) * cols);
  return to;
}

std::string gguf_name(std::string name) {
  const auto replace = [&](std::string_view from, std::string_view to) {
    if (const size_t at = name.find(from); at != std::string::npos)
      name.replace(at, from.size(), to);
  };
  for (const auto& [from, to] : {std::pair{"model.embed_tokens", "token_embd"},
                                 {"model.norm", "output_norm"},
                                 {"model.layers", "blk"},
                                 {"self_attn.o_proj", "attn_output"},
                                 {"self_attn.", "attn_"},
                                 {"mlp.", "ffn_"},
                                 {"post_attention_layernorm", "ffn_norm"},
                                 {"input_layernorm", "attn_norm"},
                                 {"_proj", ""}})
    replace(from, to);
  return name;
}

void add_tokenizer(GgufWriter& file, const std::filesystem::path& dir) {
  const Json json = parse_json(read_file(dir / "tokenizer.json"), "tokenizer.json");
  const Json& model = json["model"];
  std::vector<std::string> tokens(model["vocab"].size()), merges;
  for (const auto& [token, id] : model["vocab"].items()) tokens[id.get<size_t>()] = token;
  std::vector<int32_t> types(tokens.size(), 1);
  for (const Json& added : json["added_tokens"]) types[added["id"].get<size_t>()] = 3;
  for (const Json& merge : model["merges"])
    merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  file.string("tokenizer.ggml.model", "gpt2");
  file.string("tokenizer.ggml.pre", "qwen2");
  file.strings("tokenizer.ggml.tokens", tokens);
  file.i32s("tokenizer.ggml.token_type", types);
  file.strings("tokenizer.ggml.merges", merges);
  file.u32("tokenizer.ggml.bos_token_id", 0);
  file.u32("tokenizer.ggml.eos_token_id", 3);
  file.string("tokenizer.chat_template",
              parse_json(read_file(dir / "tokenizer_config.json"), "config")["chat_template"]
                  .get<std::string>());
}

}  // namespace

std::string needle_gguf(uint32_t type) {
  const std::filesystem::path dir = kNeedle;
  const Json config = parse_json(read_file(dir / "config.json"), "config.json");
  const auto count = [&](const char* name) { return config[name].get<uint32_t>(); };
  GgufWriter file;
  file.string("general.architecture", "llama");
  file.u32("llama.embedding_length", count("hidden_size"));
  file.u32("llama.feed_forward_length", count("intermediate_size"));
  file.u32("llama.block_count", count("num_hidden_layers"));
  file.u32("llama.attention.head_count", count("num_attention_heads"));
  file.u32("llama.attention.head_count_kv", count("num_key_value_heads"));
  file.u32("llama.attention.key_length", count("head_dim"));
  file.u32("llama.attention.value_length", count("head_dim"));
  file.u32("llama.context_length", count("max_position_embeddings"));
  file.f32("llama.attention.layer_norm_rms_epsilon", config["rms_norm_eps"].get<float>());
  file.f32("llama.rope.freq_base", config["rope_theta"].get<float>());
  add_tokenizer(file, dir);

  const Checkpoint weights(dir);
  for (const auto& [name, entry] : weights.entries()) {
    const TensorInfo& info = *entry.tensor;
    const int64_t cols = info.shape.back();
    std::vector<uint16_t> bits(static_cast<size_t>(info.size()));  // the model is in bf16
    std::memcpy(bits.data(), info.data.data(), info.data.size());
    std::vector<float> x;
    for (const uint16_t number : bits) x.push_back(from_bf16(number));
    std::string bytes;
    const std::string to = gguf_name(std::string(name));
    if (info.shape.size() == 1) {
      bytes.assign(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(float));
      file.tensor(to, /*F32*/ 0, {x.size()}, bytes);
      continue;
    }
    if (to.ends_with("attn_q.weight")) x = beside(x, count("num_attention_heads"), cols);
    if (to.ends_with("attn_k.weight")) x = beside(x, count("num_key_value_heads"), cols);
    const uint32_t of = to.starts_with("token_embd") ? kGgufQ8_0 : type;
    for (size_t i = 0; i < x.size(); i += kBlock)
      (of == kGgufQ8_0 ? put_q8_0 : put_q4_0)(bytes, &x[i]);
    file.tensor(to, of, {uint64_t(cols), uint64_t(info.shape[0])}, bytes);
  }
  return file.bytes();
}

}  // namespace ei::test
