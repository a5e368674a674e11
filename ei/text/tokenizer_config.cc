#include "ei/text/tokenizer_config.h"

#include <charconv>

#include "ei/base/fail.h"

namespace ei {
namespace {

// "bos_token" and its like are a string, or an object with the string as "content".
std::string token_text(const Json& value, std::string_view where, std::string_view field) {
  if (value.is_object()) return Fields(value, where).string("content");
  require(value.is_string(), "{}: field \"{}\" is not a string or an object with \"content\"",
          where, field);
  return value.get<std::string>();
}

}  // namespace

Json read_tokenizer_config(const std::filesystem::path& model_dir) {
  const auto read = [&](const char* name) {
    const auto path = model_dir / name;
    Json json = file_exists(path) ? read_json(path) : Json::object();
    require(json.is_object(), "{}: is {}, expected an object", path.string(), json.type_name());
    return json;
  };
  Json config = read("tokenizer_config.json");
  const Json map = read("special_tokens_map.json");
  for (const auto& [key, value] : map.items())
    if (!config.contains(key) || config[key].is_null()) config[key] = value;
  return config;
}

AddedToken parse_added_token(const Json& json, std::string_view where) {
  const Fields fields(json, where);
  AddedToken token;
  token.content = fields.string("content");
  token.special = fields.boolean("special", false);
  token.normalized = fields.boolean("normalized", !token.special);
  token.single_word = fields.boolean("single_word", false);
  token.lstrip = fields.boolean("lstrip", false);
  token.rstrip = fields.boolean("rstrip", false);
  return token;
}

TokenizerConfig parse_tokenizer_config(const Json& json, std::string_view where) {
  const Fields fields(json, where);
  TokenizerConfig config;
  if (fields.has("add_bos_token")) config.add_bos_token = fields.boolean("add_bos_token", false);
  for (const char* field : {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token",
                            "cls_token", "mask_token"}) {
    if (!fields.has(field)) continue;
    config.special_tokens.push_back(token_text(fields.at(field), where, field));
    if (field == std::string_view("bos_token")) config.bos_token = config.special_tokens.back();
    if (field == std::string_view("eos_token")) config.eos_token = config.special_tokens.back();
  }
  if (fields.has("additional_special_tokens")) {
    const Json& list = fields.at("additional_special_tokens");
    require(list.is_array(), "{}: field \"additional_special_tokens\" is not a list", where);
    for (const Json& token : list)
      config.special_tokens.push_back(token_text(token, where, "additional_special_tokens"));
  }
  if (fields.has("added_tokens_decoder")) {
    const Json& decoder = fields.at("added_tokens_decoder");
    require(decoder.is_object(), "{}: field \"added_tokens_decoder\" is not an object", where);
    for (const auto& [key, value] : decoder.items()) {
      AddedToken token = parse_added_token(value, where);
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token.id);
      require(error == std::errc() && end == key.data() + key.size() && token.id >= 0 &&
                  token.id <= kMaxTokenId,
              "{}: added_tokens_decoder: \"{}\" is not a token id from 0 to {}", where, key,
              kMaxTokenId);
      config.added_tokens.push_back(std::move(token));
    }
  }
  return config;
}

}  // namespace ei
