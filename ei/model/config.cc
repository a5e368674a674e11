#include "ei/model/config.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "ei/base/fail.h"

namespace ei {
namespace {

// Bounds that no checkpoint comes near, small enough that products of any three fit 64 bits.
constexpr int64_t kMaxWidth = 1 << 20;  // hidden, intermediate
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxPositions = 1 << 24;  // RoPE's float positions are exact up to here

// What an error message shows of a foreign value.
std::string shown(const Json& value) {
  return value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 60);
}

struct Architecture {
  std::string_view name;
  Family family;
};
constexpr std::array kArchitectures = {Architecture{"LlamaForCausalLM", Family::kLlama},
                                       Architecture{"Qwen2ForCausalLM", Family::kQwen2},
                                       Architecture{"Qwen3ForCausalLM", Family::kQwen3},
                                       Architecture{"MistralForCausalLM", Family::kMistral},
                                       Architecture{"PanguEmbeddedForCausalLM", Family::kPangu}};

Architecture find_architecture(const Fields& fields) {
  const Json& list = fields.at("architectures");
  require(list.is_array() && list.size() == 1 && list[0].is_string(),
          "{}: field \"architectures\" must be a list of one name", fields.where());
  const auto& name = list[0].get_ref<const std::string&>();
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == name) return architecture;
    known += known.empty() ? "" : ", ";
    known += architecture.name;
  }
  // Ports to transformers give openPangu another class but keep one of these types.
  const std::string type = fields.string("model_type", "");
  if (type == "PanguEmbedded" || type == "openpangu_dense")
    return {"PanguEmbeddedForCausalLM", Family::kPangu};
  fail("{}: architecture {} is not supported; these are: {}", fields.where(), shown(Json(name)),
       known);
}

// One id or a list of some.
std::vector<int32_t> token_ids(const Fields& fields, std::string_view key) {
  if (!fields.has(key)) return {};
  const std::vector<int64_t> ids = fields.at(key).is_array()
                                       ? fields.integers(key, INT32_MIN, INT32_MAX)
                                       : std::vector{fields.integer(key, INT32_MIN, INT32_MAX)};
  return {ids.begin(), ids.end()};
}

RopeType rope_type(const Fields& fields) {
  const std::string name = fields.string("rope_type", fields.string("type", "default"));
  if (name == "default") return RopeType::kDefault;
  if (name == "linear") return RopeType::kLinear;
  if (name == "llama3") return RopeType::kLlama3;
  if (name == "yarn") return RopeType::kYarn;
  require(name != "dynamic" && name != "longrope",
          "{}: rope type \"{}\" changes the frequencies with the length of the text, which is not "
          "supported; without it, or with \"yarn\" or \"linear\", the model can be used",
          fields.where(), name);
  fail("{}: rope type {} is not supported; these are: default, linear, llama3, yarn",
       fields.where(), shown(Json(name)));
}

// transformers 4 had theta in a field of its own and the rest in rope_scaling; transformers 5 has
// all of it in rope_parameters, or a set of them for each kind of layer. Where both are given it
// takes rope_scaling.
Fields rope_fields(const Fields& config) {
  static const Json kNone = Json::object();
  const bool old = config.has("rope_scaling") && !config.at("rope_scaling").empty();
  const std::string_view key = old ? "rope_scaling" : "rope_parameters";
  const Json& json = config.has(key) ? config.at(key) : kNone;
  const Fields flat(json, fmt::format("{}: {}", config.where(), key));
  if (flat.has("full_attention"))
    return {flat.at("full_attention"), flat.where() + ": full_attention"};
  for (const auto& [name, value] : json.items())
    require(!value.is_object(),
            "{}: RoPE of {} layers is not supported; the only kind is \"full_attention\"",
            flat.where(), shown(Json(name)));
  return flat;
}

RopeConfig parse_rope(const Fields& config, const Fields& fields, int64_t max_positions) {
  constexpr double kMaxFactor = 1e6;
  RopeConfig rope;
  rope.type = rope_type(fields);
  const Fields& theta_in = fields.has("rope_theta") ? fields : config;
  rope.theta = theta_in.number("rope_theta", 1.001, 1e12, rope.theta);
  for (const Fields* where : {&config, &fields})
    require(where->number("partial_rotary_factor", 0, 1, 1) == 1,
            "{}: field \"partial_rotary_factor\" other than 1 is not supported", where->where());
  if (rope.type == RopeType::kDefault) return rope;

  constexpr const char* kOriginal = "original_max_position_embeddings";
  const Fields& original_in = config.has(kOriginal) ? config : fields;
  rope.original_positions = original_in.integer(kOriginal, 1, kMaxPositions, max_positions);
  if (rope.type == RopeType::kYarn && !fields.has("factor")) {
    rope.factor = std::max(1.0, double(max_positions) / double(rope.original_positions));
  } else {
    rope.factor = fields.number("factor", 1, kMaxFactor);
  }

  if (rope.type == RopeType::kLlama3) {
    rope.low_freq_factor = fields.number("low_freq_factor", 1e-6, kMaxFactor);
    rope.high_freq_factor = fields.number("high_freq_factor", 1e-6, kMaxFactor);
    require(rope.low_freq_factor < rope.high_freq_factor,
            "{}: low_freq_factor is {}, expected less than high_freq_factor, {}", fields.where(),
            rope.low_freq_factor, rope.high_freq_factor);
  }
  if (rope.type != RopeType::kYarn) return rope;

  rope.beta_fast = fields.number("beta_fast", 1e-6, kMaxFactor, rope.beta_fast);
  rope.beta_slow = fields.number("beta_slow", 1e-6, kMaxFactor, rope.beta_slow);
  require(rope.beta_slow <= rope.beta_fast, "{}: beta_slow is {}, expected at most beta_fast, {}",
          fields.where(), rope.beta_slow, rope.beta_fast);
  rope.mscale = fields.number("mscale", 0, 1e3, 0);
  rope.mscale_all_dim = fields.number("mscale_all_dim", 0, 1e3, 0);
  rope.truncate = fields.boolean("truncate", true);
  if (fields.has("attention_factor"))
    rope.attention_factor = fields.number("attention_factor", 1e-3, 1e3);
  return rope;
}

// What the checkpoint can read with its scaling: max_position_embeddings may still be the length of
// the first training, as where a model card says to add the scaling alone.
int64_t scaled_context(const Fields& rope_fields, const RopeConfig& rope, int64_t max_positions) {
  const double scaled = rope.factor * static_cast<double>(rope.original_positions);
  require(scaled <= kMaxPositions, "{}: a context of {:.0f} tokens, at most {} are supported",
          rope_fields.where(), scaled, kMaxPositions);
  return std::max(max_positions, static_cast<int64_t>(scaled));
}

// A window that is shorter than the context, in any layer. One that is not hides nothing.
void refuse_window(const Fields& fields, const ModelConfig& config) {
  const int64_t window =
      fields.integer("sliding_window", 0, INT64_MAX, std::numeric_limits<int64_t>::max());
  // Qwen names a window that is off unless use_sliding_window says otherwise, and then begins at
  // layer max_window_layers; the others have one when they name it.
  const bool qwen = config.family == Family::kQwen2 || config.family == Family::kQwen3;
  const bool used =
      fields.boolean("use_sliding_window", !qwen) &&
      (!qwen || fields.integer("max_window_layers", 0, INT32_MAX, 28) < config.n_layers);
  require(!used || window >= config.max_positions,
          "{}: sliding_window is {}, less than the context of {} tokens; models that attend to a "
          "window are not supported",
          fields.where(), window, config.max_positions);
  if (!fields.has("layer_types")) return;
  const Json& types = fields.at("layer_types");
  require(types.is_array(), "{}: layer_types must be a list", fields.where());
  const bool hides = !fields.has("sliding_window") || window < config.max_positions;
  for (const Json& type : types)
    require(type == "full_attention" || (type == "sliding_attention" && !hides),
            "{}: layer_types has {}; the only one supported is \"full_attention\"", fields.where(),
            shown(type));
}

void refuse_unsupported(const Fields& fields) {
  const std::string act = fields.string("hidden_act", "silu");
  require(act == "silu", "{}: hidden_act {} is not supported; this is: silu", fields.where(),
          shown(Json(act)));
  require(!fields.boolean("mlp_bias", false),
          "{}: mlp_bias is true; biases in the MLP are not supported", fields.where());
}

Quantization parse_method(const Fields& fields) {
  using enum Quantization::Method;
  const auto unsupported = [&](bool ok, std::string_view key, std::string_view possible) {
    require(ok, "{}: {} is {}; what is supported is {}", fields.where(), key,
            fields.has(key) ? shown(fields.at(key)) : "missing", possible);
  };
  const std::string method = fields.string("quant_method", "");
  if (method == "fp8") {
    unsupported(fields.string("fmt", "e4m3") == "e4m3", "fmt", "e4m3");
    unsupported(!fields.has("weight_block_size") ||
                    fields.integers("weight_block_size", 1, kMaxWidth) == std::vector{128L, 128L},
                "weight_block_size", "[128, 128]");
    return {.method = kFp8};
  }
  if (method == "awq") {
    unsupported(fields.integer("bits", 1, 64) == 4, "bits", "4");
    const std::string version = fields.string("version", "gemm");
    unsupported(version == "gemm" || version == "GEMM", "version", "gemm");
    return {.method = kAwq};
  }
  if (method == "gptq") {
    const int64_t bits = fields.integer("bits", 1, 64);
    unsupported(bits == 4 || bits == 8, "bits", "4 and 8");
    const std::string format = fields.string("checkpoint_format", "gptq");
    unsupported(format == "gptq" || format == "gptq_v2", "checkpoint_format", "gptq and gptq_v2");
    return {.method = kGptq, .zero_less_one = format == "gptq"};
  }
  if (method == "compressed-tensors") {
    const std::string format = fields.string("format", "");
    unsupported(format == "pack-quantized" || format == "int-quantized" ||
                    format == "float-quantized" || format == "naive-quantized" ||
                    format == "mixed-precision",
                "format", "pack-quantized, int-quantized and float-quantized");
    unsupported(!fields.has("transform_config") || fields.at("transform_config").empty(),
                "transform_config", "none");
    return {.method = kCompressedTensors};
  }
  unsupported(false, "quant_method", "fp8, awq, gptq and compressed-tensors");
  return {};
}

Quantization parse_quantization(const Fields& config) {
  constexpr const char* kKey = "quantization_config";
  if (!config.has(kKey)) return {};
  const Fields fields(config.at(kKey), fmt::format("{}: {}", config.where(), kKey));
  Quantization quantization = parse_method(fields);
  for (const char* key : {"modules_to_not_convert", "ignore"}) {
    if (!fields.has(key)) continue;
    const Json& names = fields.at(key);
    require(names.is_array() &&
                std::ranges::all_of(names,
                                    [](const Json& name) {
                                      return name.is_string() &&
                                             !name.get_ref<const std::string&>().empty();
                                    }),
            "{}: {} must be a list of names", fields.where(), key);
    for (const Json& name : names)
      if (!name.get_ref<const std::string&>().starts_with("re:"))
        quantization.plain.push_back(name);
  }
  return quantization;
}

}  // namespace

bool Quantization::leaves_plain(std::string_view module) const {
  const std::string parts = fmt::format(".{}.", module);
  return std::ranges::any_of(plain, [&](const std::string& name) {
    return parts.find(fmt::format(".{}.", name)) != std::string::npos;
  });
}

ModelConfig parse_config(const Json& json, std::string_view where) {
  const Fields fields(json, where);
  const Architecture architecture = find_architecture(fields);
  refuse_unsupported(fields);

  ModelConfig config;
  config.architecture = architecture.name;
  config.family = architecture.family;
  config.hidden = fields.integer("hidden_size", 1, kMaxWidth);
  config.intermediate = fields.integer("intermediate_size", 1, kMaxWidth);
  config.n_layers = static_cast<int>(fields.integer("num_hidden_layers", 1, kMaxLayers));
  config.n_heads = fields.integer("num_attention_heads", 1, kMaxHeads);
  config.n_kv_heads = fields.integer("num_key_value_heads", 1, config.n_heads, config.n_heads);
  require(config.n_heads % config.n_kv_heads == 0,
          "{}: num_key_value_heads is {}, expected a divisor of num_attention_heads, {}", where,
          config.n_kv_heads, config.n_heads);
  require(fields.has("head_dim") || config.hidden % config.n_heads == 0,
          "{}: num_attention_heads is {}, expected a divisor of hidden_size, {}, as there is no "
          "head_dim",
          where, config.n_heads, config.hidden);
  config.head_dim = fields.integer("head_dim", 1, kMaxHeadDim, config.hidden / config.n_heads);
  require(config.head_dim % 2 == 0 && config.head_dim > 0 && config.head_dim <= kMaxHeadDim,
          "{}: head_dim is {}, expected an even number from 2 to {}", where, config.head_dim,
          kMaxHeadDim);
  config.vocab_size = fields.integer("vocab_size", 1, kMaxVocab);
  config.rms_norm_eps = static_cast<float>(fields.number("rms_norm_eps", 1e-12, 1, 1e-6));
  config.max_positions = fields.integer("max_position_embeddings", 1, kMaxPositions);
  const Fields rope = rope_fields(fields);
  config.rope = parse_rope(fields, rope, config.max_positions);
  config.max_positions = scaled_context(rope, config.rope, config.max_positions);
  refuse_window(fields, config);
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  config.quantization = parse_quantization(fields);
  config.qk_norm = config.family == Family::kQwen3;
  config.o_bias = fields.boolean("attention_bias", false);
  if (config.family == Family::kPangu) config.o_bias = fields.boolean("bias", true);
  config.qkv_bias = config.o_bias || config.family == Family::kQwen2;
  config.eos_ids = token_ids(fields, "eos_token_id");
  return config;
}

ModelConfig load_config(const std::filesystem::path& dir) {
  const auto path = dir / "config.json";
  return parse_config(read_json(path, {.max_bytes = 1 << 20, .max_depth = 64}), path.string());
}

ModelConfig share_of(ModelConfig whole, int n_ranks, std::string_view where) {
  const auto divide = [&](int64_t n, std::string_view name) {
    require(n % n_ranks == 0,
            "{}: {} is {}, which {} ranks cannot share alike; start as many ranks as divide it",
            where, name, n, n_ranks);
    return n / n_ranks;
  };
  whole.n_kv_heads = divide(whole.n_kv_heads, "the number of KV heads");
  whole.n_heads /= n_ranks;  // groups of a KV head each
  whole.intermediate = divide(whole.intermediate, "intermediate_size");
  divide(whole.vocab_size, "vocab_size");
  whole.n_ranks = n_ranks;
  return whole;
}

GenerationConfig parse_generation_config(const Json& json, std::string_view where) {
  const Fields fields(json, where);
  const auto number = [&](std::string_view key, double min, double max) {
    return fields.has(key) ? std::optional(fields.number(key, min, max)) : std::nullopt;
  };
  GenerationConfig config;
  config.eos_ids = token_ids(fields, "eos_token_id");
  if (fields.has("do_sample")) config.do_sample = fields.boolean("do_sample", false);
  config.temperature = number("temperature", 0, 100);
  if (fields.has("top_k"))  // -1 is another word for all
    config.top_k = std::max<int64_t>(0, fields.integer("top_k", -1, INT32_MAX));
  config.top_p = number("top_p", 0, 1);
  config.min_p = number("min_p", 0, 1);
  config.repetition_penalty = number("repetition_penalty", 0.01, 100);
  return config;
}

GenerationConfig load_generation_config(const std::filesystem::path& dir) {
  const auto path = dir / "generation_config.json";
  if (!file_exists(path)) return {};
  return parse_generation_config(read_json(path, {.max_bytes = 1 << 20, .max_depth = 64}),
                                 path.string());
}

}  // namespace ei
