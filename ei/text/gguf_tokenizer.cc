#include "ei/text/gguf_tokenizer.h"

#include <algorithm>
#include <array>

#include "ei/base/fail.h"
#include "ei/io/json.h"
#include "ei/text/byte_level.h"
#include "ei/text/sentencepiece.h"

namespace ei {
namespace {

constexpr const char* kModel = "tokenizer.ggml.model";
constexpr const char* kPre = "tokenizer.ggml.pre";
constexpr uint64_t kMostTokens = kMaxTokenId + 1;

// Regular expressions that cut a text, one after the other.
constexpr const char* kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct PreTokenizer {
  std::string_view name;
  std::vector<const char*> splits;
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;
};

const PreTokenizer& find_pre_tokenizer(const GgufMetadata& keys) {
  static const std::array kKnown = {
      PreTokenizer{
          .name = "llama-bpe", .splits = {kLlama3}, .ignore_merges = true, .add_bos = true},
      PreTokenizer{.name = "llama3", .splits = {kLlama3}, .ignore_merges = true, .add_bos = true},
      PreTokenizer{.name = "tekken", .splits = {kTekken}, .ignore_merges = true, .add_bos = true},
      PreTokenizer{.name = "qwen2", .splits = {kQwen2}, .nfc = true},
      PreTokenizer{.name = "smollm", .splits = {R"(\p{N})", kGpt2}},
      PreTokenizer{.name = "gpt-2", .splits = {kGpt2}},
      PreTokenizer{.name = "default",
                   .splits = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}}};
  const std::string_view name = keys.string(kPre, "default");
  std::string known;
  for (const PreTokenizer& pre : kKnown) {
    if (pre.name == name) return pre;
    known += known.empty() ? "" : ", ";
    known += pre.name;
  }
  fail("{}: key {} is {}, which is not supported; these are: {}", keys.where(), kPre, shown(name),
       known);
}

enum TokenType { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

struct Tokens {
  std::vector<std::string_view> texts;
  std::vector<int64_t> types;  // as many

  explicit Tokens(const GgufMetadata& keys)
      : texts(keys.strings("tokenizer.ggml.tokens", kMostTokens)),
        types(keys.integers("tokenizer.ggml.token_type", kMostTokens)) {
    require(!texts.empty(), "{}: key tokenizer.ggml.tokens is missing or empty", keys.where());
    if (types.empty()) types.assign(texts.size(), kNormal);
    require(types.size() == texts.size(),
            "{}: key tokenizer.ggml.token_type has {} elements, expected {}, one for each token",
            keys.where(), types.size(), texts.size());
    for (size_t id = 0; id < texts.size(); ++id) {
      require(types[id] >= kNormal && types[id] <= kByte,
              "{}: key tokenizer.ggml.token_type: token {} has the type {}, expected 1 to 6",
              keys.where(), id, types[id]);
      require_utf8(texts[id],
                   fmt::format("{}: key tokenizer.ggml.tokens: token {}", keys.where(), id));
    }
  }

  // The id under "tokenizer.ggml.NAME_token_id", if it is there and one of a token.
  std::optional<int32_t> named(const GgufMetadata& keys, std::string_view name) const {
    const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
    const int64_t id = keys.integer(key, -1, UINT32_MAX, -1);
    if (id < 0 || id >= std::ssize(texts)) return std::nullopt;
    return static_cast<int32_t>(id);
  }
};

TokenizerConfig config_of(const GgufMetadata& keys, const Tokens& tokens, bool add_bos) {
  TokenizerConfig config;
  const auto name = [&](std::string_view role) -> std::optional<std::string> {
    const auto id = tokens.named(keys, role);
    if (!id) return std::nullopt;
    return config.special_tokens.emplace_back(tokens.texts[static_cast<size_t>(*id)]);
  };
  config.bos_token = name("bos");
  config.eos_token = name("eos");
  config.add_bos_token = keys.boolean("tokenizer.ggml.add_bos_token", add_bos);
  return config;
}

// The tokenizer.json that says the same.
std::unique_ptr<Tokenizer> byte_level(const GgufMetadata& keys) {
  const Tokens tokens(keys);
  const PreTokenizer& pre = find_pre_tokenizer(keys);
  Json vocab = Json::object(), added = Json::array(), merges = Json::array();
  for (size_t id = 0; id < tokens.texts.size(); ++id) {
    const int64_t type = tokens.types[id];
    if (type == kUnused || tokens.texts[id].empty()) continue;
    if (type == kNormal || type == kByte) {
      vocab[std::string(tokens.texts[id])] = id;
    } else {
      added.push_back({{"id", id},
                       {"content", tokens.texts[id]},
                       {"special", type != kUserDefined},
                       {"normalized", false}});
    }
  }
  for (const std::string_view merge : keys.strings("tokenizer.ggml.merges", 4 * kMostTokens)) {
    require_utf8(merge, fmt::format("{}: key tokenizer.ggml.merges", keys.where()));
    merges.push_back(merge);
  }
  Json steps = Json::array();
  for (const char* split : pre.splits)
    steps.push_back({{"type", "Split"}, {"pattern", {{"Regex", split}}}, {"behavior", "Isolated"}});
  steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}});
  Json json = {{"model", {{"type", "BPE"}, {"ignore_merges", pre.ignore_merges}}},
               {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}}},
               {"decoder", {{"type", "ByteLevel"}}},
               {"added_tokens", std::move(added)}};
  json["model"]["vocab"] = std::move(vocab);
  json["model"]["merges"] = std::move(merges);
  if (pre.nfc) json["normalizer"] = {{"type", "NFC"}};
  return make_byte_level(json, config_of(keys, tokens, pre.add_bos), keys.where());
}

std::unique_ptr<Tokenizer> sentencepiece(const GgufMetadata& keys) {
  const Tokens tokens(keys);
  const std::vector<float> scores = keys.numbers("tokenizer.ggml.scores", kMostTokens);
  require(scores.size() == tokens.texts.size(),
          "{}: key tokenizer.ggml.scores has {} elements, expected {}, one for each token",
          keys.where(), scores.size(), tokens.texts.size());
  SentencePieceModel model;
  for (size_t id = 0; id < scores.size(); ++id)
    model.pieces.push_back({std::string(tokens.texts[id]), scores[id],
                            static_cast<SentencePieceModel::Type>(tokens.types[id])});
  model.byte_fallback = std::ranges::count(tokens.types, kByte) > 0;
  model.unk_id = tokens.named(keys, "unknown").value_or(0);
  model.bos_id = tokens.named(keys, "bos").value_or(-1);
  model.eos_id = tokens.named(keys, "eos").value_or(-1);
  model.add_dummy_prefix = keys.boolean("tokenizer.ggml.add_space_prefix", true);
  model.remove_extra_whitespaces = keys.boolean("tokenizer.ggml.remove_extra_whitespaces", false);
  check(model, keys.where());
  return make_sentencepiece(std::move(model), config_of(keys, tokens, /*add_bos=*/true),
                            keys.where());
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer(const GgufMetadata& keys) {
  const std::string_view model = keys.string(kModel);
  if (model == "gpt2") return byte_level(keys);
  require(model == "llama", "{}: key {} is {}, which is not supported; these are: gpt2, llama",
          keys.where(), kModel, shown(model));
  return sentencepiece(keys);
}

std::vector<int32_t> end_ids(const GgufMetadata& keys, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  for (const char* role : {"eos", "eot", "eom"}) {
    const int64_t id =
        keys.integer(fmt::format("tokenizer.ggml.{}_token_id", role), -1, UINT32_MAX, -1);
    if (id >= 0 && id < tokenizer.vocab_size()) ids.push_back(static_cast<int32_t>(id));
  }
  for (const char* name :
       {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>"})
    if (const auto id = tokenizer.token_id(name); id && tokenizer.is_special(*id))
      ids.push_back(*id);
  return ids;
}

std::optional<ChatTemplate> load_chat_template(const GgufMetadata& keys,
                                               const Tokenizer& tokenizer) {
  constexpr const char* kKey = "tokenizer.chat_template";
  if (!keys.has(kKey)) return std::nullopt;
  OrderedJson names = OrderedJson::object();
  for (const auto& [name, id] :
       {std::pair("bos_token", tokenizer.bos_id()), {"eos_token", tokenizer.eos_id()}})
    if (id) names[name] = tokenizer.token_bytes(*id);
  return ChatTemplate(keys.string(kKey), fmt::format("{}: {}", keys.where(), kKey),
                      std::move(names), tokenizer);
}

}  // namespace ei
