#include "ei/model/config.h"

#include <gmock/gmock.h>

#include <algorithm>

#include "tests/support/files.h"

namespace ei::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Json llama31() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 4096},
          {"intermediate_size", 14336},
          {"num_hidden_layers", 32},
          {"num_attention_heads", 32},
          {"num_key_value_heads", 8},
          {"vocab_size", 128256},
          {"rms_norm_eps", 1e-5},
          {"max_position_embeddings", 131072},
          {"hidden_act", "silu"},
          {"rope_theta", 5e5},
          {"rope_scaling",
           {{"rope_type", "llama3"},
            {"factor", 8.0},
            {"low_freq_factor", 1.0},
            {"high_freq_factor", 4.0},
            {"original_max_position_embeddings", 8192}}},
          {"tie_word_embeddings", false},
          {"attention_bias", false},
          {"mlp_bias", false},
          {"bos_token_id", 128000},
          {"eos_token_id", {128001, 128008, 128009}},
          {"torch_dtype", "bfloat16"}};
}

// llama31() with fields replaced; null removes one.
Json with(std::initializer_list<std::pair<const char*, Json>> changes) {
  Json json = llama31();
  for (const auto& [key, value] : changes) {
    json[key] = value;
    if (value.is_null()) json.erase(key);
  }
  return json;
}
Json of_architecture(const char* name) { return with({{"architectures", Json::array({name})}}); }

std::string error(const Json& json) {
  return error_of([&] { parse_config(json, "config.json"); });
}

TEST(Config, Llama31) {
  const ModelConfig config = parse_config(llama31(), "");
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.family, Family::kLlama);
  EXPECT_EQ(config.hidden, 4096);
  EXPECT_EQ(config.intermediate, 14336);
  EXPECT_EQ(config.n_layers, 32);
  EXPECT_EQ(config.n_heads, 32);
  EXPECT_EQ(config.n_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.vocab_size, 128256);
  EXPECT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_EQ(config.max_positions, 131072);
  EXPECT_EQ(config.rope.type, RopeType::kLlama3);
  EXPECT_EQ(config.rope.theta, 5e5);
  EXPECT_EQ(config.rope.factor, 8);
  EXPECT_EQ(config.rope.original_positions, 8192);
  EXPECT_EQ(config.rope.low_freq_factor, 1);
  EXPECT_EQ(config.rope.high_freq_factor, 4);
  EXPECT_FALSE(config.tie_word_embeddings || config.qk_norm || config.qkv_bias || config.o_bias);
  EXPECT_THAT(config.eos_ids, ElementsAre(128001, 128008, 128009));
}

TEST(Config, SpellingOfTransformers5) {
  Json json = with({{"rope_theta", nullptr}, {"rope_scaling", nullptr}, {"torch_dtype", nullptr}});
  json["dtype"] = "bfloat16";
  json["rope_parameters"] = llama31()["rope_scaling"];
  json["rope_parameters"]["rope_theta"] = 5e5;
  const ModelConfig config = parse_config(json, "");
  EXPECT_EQ(config.rope.type, RopeType::kLlama3);
  EXPECT_EQ(config.rope.theta, 5e5);
  EXPECT_EQ(config.rope.factor, 8);

  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  EXPECT_EQ(parse_config(json, "").rope.type, RopeType::kDefault);
  EXPECT_EQ(parse_config(json, "").rope.theta, 1e6);
}

TEST(Config, FieldsThatOldFilesLack) {
  const ModelConfig config = parse_config(with({{"num_key_value_heads", nullptr},
                                                {"rope_theta", nullptr},
                                                {"rope_scaling", nullptr},
                                                {"tie_word_embeddings", nullptr},
                                                {"attention_bias", nullptr},
                                                {"mlp_bias", nullptr},
                                                {"eos_token_id", nullptr},
                                                {"hidden_act", nullptr}}),
                                          "");
  EXPECT_EQ(config.n_kv_heads, 32);
  EXPECT_EQ(config.rope.theta, 1e4);
  EXPECT_EQ(config.rope.type, RopeType::kDefault);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_THAT(config.eos_ids, IsEmpty());
  EXPECT_THAT(parse_config(with({{"eos_token_id", 7}}), "").eos_ids, ElementsAre(7));
}

TEST(Config, HeadsMayBeOfAnyWidth) {
  const ModelConfig config = parse_config(
      with({{"hidden_size", 5120}, {"num_attention_heads", 32}, {"head_dim", 128}}), "");
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_THAT(error(with({{"hidden_size", 4100}})), HasSubstr("divisor of hidden_size, 4100"));
  EXPECT_THAT(error(with({{"head_dim", 127}})), HasSubstr("expected an even number"));
}

TEST(Config, Families) {
  const auto config = [](const char* name) { return parse_config(of_architecture(name), ""); };
  EXPECT_EQ(config("MistralForCausalLM").family, Family::kMistral);
  EXPECT_EQ(config("Qwen2ForCausalLM").family, Family::kQwen2);
  EXPECT_TRUE(config("Qwen2ForCausalLM").qkv_bias);
  EXPECT_FALSE(config("Qwen2ForCausalLM").o_bias);
  EXPECT_EQ(config("Qwen3ForCausalLM").family, Family::kQwen3);
  EXPECT_TRUE(config("Qwen3ForCausalLM").qk_norm);
  EXPECT_EQ(config("PanguEmbeddedForCausalLM").family, Family::kPangu);
  EXPECT_TRUE(config("PanguEmbeddedForCausalLM").o_bias);
  // A port gives the class another name.
  Json port = of_architecture("OpenPanguDenseForCausalLM");
  port["model_type"] = "openpangu_dense";
  EXPECT_EQ(parse_config(port, "").family, Family::kPangu);
}

TEST(Config, RefusesOtherArchitecturesAndListsItsOwn) {
  EXPECT_THAT(error(of_architecture("GPT2LMHeadModel")),
              AllOf(HasSubstr("config.json"), HasSubstr("\"GPT2LMHeadModel\" is not supported"),
                    HasSubstr("LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, "
                              "MistralForCausalLM, PanguEmbeddedForCausalLM")));
  EXPECT_THAT(error(with({{"architectures", nullptr}})), HasSubstr("\"architectures\" is missing"));
  EXPECT_THAT(error(with({{"architectures", Json::array()}})), HasSubstr("list of one name"));
  EXPECT_THAT(error(with({{"architectures", {"LlamaForCausalLM", "x"}}})),
              HasSubstr("list of one name"));
  EXPECT_THAT(error(with({{"architectures", "LlamaForCausalLM"}})), HasSubstr("list of one name"));
}

TEST(Config, RefusesAnActiveWindow) {
  Json mistral = of_architecture("MistralForCausalLM");
  mistral["sliding_window"] = nullptr;
  EXPECT_EQ(error(mistral), "");
  mistral["sliding_window"] = 4096;
  EXPECT_THAT(error(mistral),
              AllOf(HasSubstr("sliding_window is 4096"), HasSubstr("not supported")));

  Json qwen = of_architecture("Qwen2ForCausalLM");
  qwen["sliding_window"] = 32768;
  EXPECT_EQ(error(qwen), "");
  qwen["use_sliding_window"] = false;
  EXPECT_EQ(error(qwen), "");
  qwen["use_sliding_window"] = true;
  EXPECT_THAT(error(qwen), HasSubstr("sliding_window is 32768"));
  qwen["max_window_layers"] = 32;  // it would begin after the last
  EXPECT_EQ(error(qwen), "");
  qwen["max_window_layers"] = 31;
  EXPECT_THAT(error(qwen), HasSubstr("sliding_window is 32768"));
  qwen["sliding_window"] = nullptr;
  EXPECT_EQ(error(qwen), "");

  // A window as long as the context hides nothing.
  Json wide =
      with({{"sliding_window", 131072}, {"layer_types", {"full_attention", "sliding_attention"}}});
  EXPECT_EQ(error(wide), "");
  wide["sliding_window"] = 131071;
  EXPECT_THAT(error(wide), HasSubstr("sliding_window is 131071"));

  EXPECT_EQ(error(with({{"layer_types", {"full_attention", "full_attention"}}})), "");
  EXPECT_THAT(error(with({{"layer_types", {"full_attention", "sliding_attention"}}})),
              HasSubstr("\"sliding_attention\""));
  EXPECT_THAT(error(with({{"layer_types", "full_attention"}})), HasSubstr("must be a list"));
}

TEST(Config, RefusesWhatItWouldComputeWrongly) {
  EXPECT_THAT(error(with({{"hidden_act", "gelu"}})), HasSubstr("\"gelu\" is not supported"));
  EXPECT_THAT(error(with({{"mlp_bias", true}})), HasSubstr("mlp_bias"));
  EXPECT_THAT(error(with({{"partial_rotary_factor", 0.5}})), HasSubstr("partial_rotary_factor"));
}

TEST(Config, Quantization) {
  using enum Quantization::Method;
  const auto quantized = [](const Json& fields) { return with({{"quantization_config", fields}}); };
  const auto of = [&](const Json& fields) {
    return parse_config(quantized(fields), "config.json").quantization;
  };
  EXPECT_EQ(parse_config(with({}), "config.json").quantization.method, kNone);
  EXPECT_EQ(of({{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}).method, kFp8);
  EXPECT_EQ(of({{"quant_method", "awq"}, {"bits", 4}, {"version", "gemm"}}).method, kAwq);
  EXPECT_TRUE(of({{"quant_method", "gptq"}, {"bits", 4}, {"desc_act", true}}).zero_less_one);
  EXPECT_FALSE(
      of({{"quant_method", "gptq"}, {"bits", 8}, {"checkpoint_format", "gptq_v2"}}).zero_less_one);
  EXPECT_EQ(of({{"quant_method", "compressed-tensors"}, {"format", "pack-quantized"}}).method,
            kCompressedTensors);
  const Quantization lists =
      of({{"quant_method", "compressed-tensors"},
          {"format", "float-quantized"},
          {"modules_to_not_convert", nullptr},
          {"ignore", {"lm_head", "model.layers.1", "mlp.up_proj", "re:.*k_proj"}}});
  for (const char* plain :
       {"lm_head", "model.layers.1.mlp.down_proj", "model.layers.7.mlp.up_proj"})
    EXPECT_TRUE(lists.leaves_plain(plain)) << plain;
  for (const char* other :
       {"model.layers.11.mlp.down_proj", "model.layers.0.self_attn.k_proj", "head"})
    EXPECT_FALSE(lists.leaves_plain(other)) << other;
  EXPECT_THAT(error(quantized({{"quant_method", "fp8"}, {"modules_to_not_convert", {1}}})),
              HasSubstr("modules_to_not_convert must be a list of names"));
  const auto refused = [&](const Json& fields, const std::string& key, const char* what) {
    EXPECT_THAT(error(quantized(fields)), AllOf(HasSubstr(key + " is "), HasSubstr(what)));
  };
  refused({{"bits", 4}}, "quant_method", "missing");
  refused({{"quant_method", "bitsandbytes"}}, "quant_method", "fp8, awq, gptq");
  refused({{"quant_method", "fp8"}, {"weight_block_size", {64, 64}}}, "weight_block_size", "128");
  refused({{"quant_method", "awq"}, {"bits", 4}, {"version", "gemv"}}, "version", "gemm");
  refused({{"quant_method", "gptq"}, {"bits", 3}}, "bits", "4 and 8");
  refused({{"quant_method", "compressed-tensors"}, {"format", "nvfp4-pack-quantized"}}, "format",
          "nvfp4");
}

TEST(Config, RopeTypes) {
  const auto rope = [](const Json& scaling) {
    return parse_config(with({{"rope_scaling", scaling}}), "config.json").rope;
  };
  EXPECT_EQ(rope({{"type", "linear"}, {"factor", 2}}).type, RopeType::kLinear);
  const RopeConfig yarn = rope({{"rope_type", "yarn"}, {"factor", 4.0}});
  EXPECT_EQ(yarn.type, RopeType::kYarn);
  EXPECT_EQ(yarn.original_positions, 131072);
  EXPECT_EQ(yarn.beta_fast, 32);
  EXPECT_TRUE(yarn.truncate);
  const RopeConfig full = rope({{"type", "yarn"},
                                {"factor", 4.0},
                                {"original_max_position_embeddings", 32768},
                                {"beta_fast", 16},
                                {"beta_slow", 2},
                                {"mscale", 0.5},
                                {"mscale_all_dim", 0.25},
                                {"attention_factor", 1.5},
                                {"truncate", false}});
  EXPECT_EQ(full.original_positions, 32768);
  EXPECT_EQ(full.beta_fast, 16);
  EXPECT_EQ(full.beta_slow, 2);
  EXPECT_EQ(full.mscale, 0.5);
  EXPECT_EQ(full.mscale_all_dim, 0.25);
  EXPECT_EQ(full.attention_factor, 1.5);
  EXPECT_FALSE(full.truncate);
  for (const char* type : {"dynamic", "longrope", "su", "mrope"})
    EXPECT_THAT(
        error_of([&] {
          rope({{"rope_type", type}, {"factor", 2}});
        }),
        AllOf(HasSubstr("config.json: rope_scaling"), HasSubstr(type), HasSubstr("not supported")));
}

TEST(Config, TheContextGrowsWithTheScaling) {
  const auto context = [](int64_t max_positions, const Json& scaling) {
    return parse_config(
               with({{"max_position_embeddings", max_positions}, {"rope_scaling", scaling}}), "")
        .max_positions;
  };
  const Json yarn = {
      {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}};
  EXPECT_EQ(context(1024, yarn), 4096);  // as Qwen's model cards say to add it
  EXPECT_EQ(context(4096, yarn), 4096);  // as others have it
  EXPECT_EQ(context(40960, yarn), 40960);
  EXPECT_EQ(context(1024, {{"type", "yarn"}, {"factor", 2.5}}), 2560);
  EXPECT_EQ(context(1000, {{"type", "linear"}, {"factor", 2}}), 2000);
  EXPECT_EQ(context(131072, llama31()["rope_scaling"]), 131072);  // 8192 times 8 is less
  EXPECT_EQ(context(8192, llama31()["rope_scaling"]), 65536);
  EXPECT_EQ(context(1024, nullptr), 1024);
  EXPECT_THAT(error(with({{"rope_scaling", {{"type", "linear"}, {"factor", 1e5}}}})),
              HasSubstr("a context of"));
}

TEST(Config, RopeOfKindsOfLayers) {
  Json json = with({{"rope_scaling", nullptr}});
  json["rope_parameters"] = {
      {"full_attention", {{"rope_type", "linear"}, {"rope_theta", 1e6}, {"factor", 2}}},
      {"sliding_attention", {{"rope_type", "default"}}}};
  EXPECT_EQ(parse_config(json, "").rope.theta, 1e6);
  EXPECT_EQ(parse_config(json, "").rope.factor, 2);
  json["rope_parameters"].erase("full_attention");
  EXPECT_THAT(error(json), HasSubstr("\"sliding_attention\" layers"));
}

TEST(Config, RefusesRopeOutOfRange) {
  const auto scaling = [](const char* key, const Json& value) {
    Json json = llama31();
    json["rope_scaling"][key] = value;
    return error(json);
  };
  EXPECT_THAT(scaling("factor", 0), HasSubstr("\"factor\" is 0"));
  EXPECT_THAT(scaling("factor", "8"), HasSubstr("\"factor\" is \"8\""));
  EXPECT_THAT(scaling("factor", nullptr), HasSubstr("\"factor\" is missing"));
  EXPECT_THAT(scaling("low_freq_factor", 4.0), HasSubstr("less than high_freq_factor"));
  EXPECT_THAT(scaling("original_max_position_embeddings", -1), HasSubstr("-1"));
  EXPECT_THAT(error(with({{"rope_theta", -1}})), HasSubstr("\"rope_theta\" is -1"));
  EXPECT_THAT(error(with({{"rope_theta", 1}})), HasSubstr("\"rope_theta\" is 1"));
  EXPECT_THAT(error(with({{"rope_scaling", 3}})), HasSubstr("expected a JSON object"));
}

// Every count must be an integer within reason, whatever stands there instead.
TEST(Config, RefusesCountsThatAreNotWithinReason) {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "vocab_size", "max_position_embeddings"}) {
    EXPECT_THAT(error(with({{key, nullptr}})), HasSubstr(std::string(key) + "\" is missing"));
    for (const Json& value : {Json(0), Json(-1), Json(1.5), Json("12"), Json(true),
                              Json::array({1}), Json(INT64_MAX), Json(UINT64_MAX), Json(1e300)})
      EXPECT_THAT(error(with({{key, value}})),
                  AllOf(HasSubstr("config.json"), HasSubstr(key), HasSubstr(value.dump())));
  }
  for (const char* key : {"num_key_value_heads", "head_dim"})
    for (const Json& value : {Json(0), Json(-8), Json(8.5), Json("8"), Json(1 << 20)})
      EXPECT_THAT(error(with({{key, value}})), AllOf(HasSubstr(key), HasSubstr(value.dump())));
  EXPECT_THAT(error(with({{"num_key_value_heads", 5}})), HasSubstr("divisor"));
  EXPECT_THAT(error(with({{"rms_norm_eps", 0}})), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(error(with({{"tie_word_embeddings", 1}})), HasSubstr("true or false"));
  EXPECT_THAT(error(with({{"eos_token_id", "x"}})), HasSubstr("eos_token_id"));
  EXPECT_THAT(error(Json::array()), HasSubstr("expected a JSON object"));
}

TEST(Config, LoadNamesTheFile) {
  const TempDir dir;
  EXPECT_THAT(error_of([&] { load_config(dir.path()); }),
              AllOf(HasSubstr("config.json"), HasSubstr("no such file")));
  write_file(dir / "config.json", "{");
  EXPECT_THAT(error_of([&] { load_config(dir.path()); }), HasSubstr("not valid JSON"));
  write_file(dir / "config.json", llama31().dump());
  EXPECT_EQ(load_config(dir.path()).hidden, 4096);
}

TEST(GenerationConfig, ReadsWhatIsThere) {
  const GenerationConfig all = parse_generation_config({{"eos_token_id", {151645, 151643}},
                                                        {"do_sample", true},
                                                        {"temperature", 0.7},
                                                        {"top_k", 20},
                                                        {"top_p", 0.8},
                                                        {"min_p", 0.05},
                                                        {"repetition_penalty", 1.05},
                                                        {"pad_token_id", 151643}},
                                                       "");
  EXPECT_THAT(all.eos_ids, ElementsAre(151645, 151643));
  EXPECT_EQ(all.do_sample, true);
  EXPECT_EQ(all.temperature, 0.7);
  EXPECT_EQ(all.top_k, 20);
  EXPECT_EQ(all.top_p, 0.8);
  EXPECT_EQ(all.min_p, 0.05);
  EXPECT_EQ(all.repetition_penalty, 1.05);
  const GenerationConfig none = parse_generation_config({{"top_k", nullptr}}, "");
  EXPECT_THAT(none.eos_ids, IsEmpty());
  EXPECT_FALSE(none.do_sample || none.temperature || none.top_k || none.top_p || none.min_p ||
               none.repetition_penalty);
  EXPECT_EQ(parse_generation_config({{"top_k", -1}}, "").top_k, 0);
  EXPECT_FALSE(load_generation_config(TempDir().path()).temperature.has_value());
}

TEST(GenerationConfig, RefusesValuesOutOfRange) {
  for (const auto& bad :
       std::initializer_list<std::pair<const char*, Json>>{{"temperature", -1},
                                                           {"temperature", "hot"},
                                                           {"top_k", -2},
                                                           {"top_k", 1e10},
                                                           {"top_p", 1.5},
                                                           {"min_p", -0.1},
                                                           {"repetition_penalty", 0},
                                                           {"do_sample", 1},
                                                           {"eos_token_id", 1.5},
                                                           {"eos_token_id", "</s>"}})
    EXPECT_THAT(error_of([&] {
                  parse_generation_config({{bad.first, bad.second}}, "g.json");
                }),
                AllOf(HasSubstr("g.json"), HasSubstr(bad.first)));
}

}  // namespace
}  // namespace ei::test
