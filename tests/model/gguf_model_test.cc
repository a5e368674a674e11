#include "ei/model/gguf_model.h"

#include <gmock/gmock.h>

#include <functional>

#include "tests/support/files.h"
#include "tests/support/gguf.h"

namespace ei::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// Keys of a small model.
void keys(GgufWriter& file, const std::string& a) {
  file.string("general.architecture", a);
  file.u32(a + ".embedding_length", 64);
  file.u32(a + ".feed_forward_length", 96);
  file.u32(a + ".block_count", 2);
  file.u32(a + ".attention.head_count", 4);
  file.u32(a + ".attention.head_count_kv", 2);
  file.u32(a + ".context_length", 2048);
  file.f32(a + ".attention.layer_norm_rms_epsilon", 1e-6f);
}
void embedding(GgufWriter& file) {
  file.tensor("token_embd.weight", 1, {64, 10}, std::string(1280, '\0'));
}

ModelConfig config_of(const GgufWriter& writer) {
  const TempDir dir;
  write_file(dir / "m.gguf", writer.bytes());
  return gguf_config(GgufFile(dir / "m.gguf"));
}
std::string error_with(const std::function<void(GgufWriter&)>& change, const char* a = "llama") {
  GgufWriter file;
  keys(file, a);
  change(file);
  embedding(file);
  return error_of([&] { config_of(file); });
}

TEST(GgufModel, ReadsLlamaWithFactorsOfFrequencies) {
  GgufWriter file;
  keys(file, "llama");
  file.f32("llama.rope.freq_base", 500000);
  embedding(file);
  const float factors[8] = {1, 1, 2, 2, 4, 4, 8, 8};
  file.tensor("rope_freqs.weight", 0, {8},
              {reinterpret_cast<const char*>(factors), sizeof factors});
  file.tensor("blk.0.attn_output.bias", 0, {64}, std::string(256, '\0'));
  const ModelConfig config = config_of(file);
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.hidden, 64);
  EXPECT_EQ(config.intermediate, 96);
  EXPECT_EQ(config.n_layers, 2);
  EXPECT_EQ(config.n_heads, 4);
  EXPECT_EQ(config.n_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.vocab_size, 10);
  EXPECT_EQ(config.max_positions, 2048);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_EQ(config.rope.theta, 500000);
  EXPECT_TRUE(config.rope.interleaved);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_TRUE(config.o_bias);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_THAT(config.rope.factors, ElementsAre(1, 1, 2, 2, 4, 4, 8, 8));
  const auto plain = rope_frequencies({.theta = 500000}, 16).inv_freq;
  const auto divided = rope_frequencies(config.rope, 16).inv_freq;
  for (size_t k = 0; k < 8; ++k) EXPECT_FLOAT_EQ(divided[k] * factors[k], plain[k]) << k;
}

TEST(GgufModel, ReadsQwen3WithYarn) {
  GgufWriter file;
  keys(file, "qwen3");
  file.u32("qwen3.attention.key_length", 32);
  file.u32("qwen3.attention.value_length", 32);
  file.string("qwen3.rope.scaling.type", "yarn");
  file.f32("qwen3.rope.scaling.factor", 4);
  file.u32("qwen3.rope.scaling.original_context_length", 512);
  embedding(file);
  file.tensor("output.weight", 1, {64, 10}, std::string(1280, '\0'));
  const ModelConfig config = config_of(file);
  EXPECT_EQ(config.family, Family::kQwen3);
  EXPECT_EQ(config.head_dim, 32);
  EXPECT_TRUE(config.qk_norm);
  EXPECT_FALSE(config.rope.interleaved);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.rope.type, RopeType::kYarn);
  EXPECT_EQ(config.rope.original_positions, 512);
  EXPECT_NEAR(rope_frequencies(config.rope, 32).scale, 1.1386294, 1e-6);  // 0.1 ln 4 + 1
}

TEST(GgufModel, NamesWhatIsWrongOrNotSupported) {
  const auto u32 = [](const char* key, uint32_t value) {
    return error_with([&](GgufWriter& file) { file.u32(key, value); });
  };
  EXPECT_THAT(error_with([](GgufWriter&) {}, "gemma3"),
              AllOf(HasSubstr("m.gguf"), HasSubstr("\"gemma3\""), HasSubstr("qwen2")));
  EXPECT_THAT(u32("llama.expert_count", 8), HasSubstr("mixture of experts"));
  EXPECT_THAT(u32("llama.attention.sliding_window", 1024), HasSubstr("window of 1024"));
  EXPECT_EQ(u32("llama.attention.sliding_window", 2048), "");
  EXPECT_THAT(u32("llama.rope.dimension_count", 8), HasSubstr("rope.dimension_count"));
  EXPECT_THAT(
      error_with([](GgufWriter& file) { file.string("llama.rope.scaling.type", "longrope"); }),
      HasSubstr("longrope"));
  EXPECT_THAT(error_with([](GgufWriter& file) {
                file.tensor("rope_freqs.weight", 0, {4}, std::string(16, '\0'));
              }),
              HasSubstr("expected F32 [8]"));
  GgufWriter bare;
  keys(bare, "llama");
  EXPECT_THAT(error_of([&] { config_of(bare); }), HasSubstr("token_embd.weight"));
}

TEST(GgufModel, NamesOfTensors) {
  EXPECT_EQ(hugging_face_name("blk.12.attn_q.bias"), "model.layers.12.self_attn.q_proj.bias");
  EXPECT_EQ(hugging_face_name("blk.0.ffn_norm.weight"),
            "model.layers.0.post_attention_layernorm.weight");
  EXPECT_EQ(hugging_face_name("output.weight"), "lm_head.weight");
  EXPECT_EQ(hugging_face_name("blk.0.ffn_gate_exps.weight"), "blk.0.ffn_gate_exps.weight");
  EXPECT_EQ(hugging_face_name("blk.0"), "blk.0");
}

}  // namespace
}  // namespace ei::test
