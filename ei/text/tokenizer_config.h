#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "ei/io/json.h"
#include "ei/text/added_tokens.h"

namespace ei {

// What tokenizer_config.json says about the tokenizer beside it. Everything is optional.
struct TokenizerConfig {
  std::optional<std::string> bos_token, eos_token;
  std::vector<std::string> special_tokens;  // all that have a name, bos_token and eos_token too
  std::optional<bool> add_bos_token;
  std::vector<AddedToken> added_tokens;  // added_tokens_decoder
};

// tokenizer_config.json of a Hugging Face directory, with the special tokens that only
// special_tokens_map.json names; an empty object where there is neither.
Json read_tokenizer_config(const std::filesystem::path& model_dir);

// Throws Error naming `where` and the field that is of the wrong type.
TokenizerConfig parse_tokenizer_config(const Json& json, std::string_view where);

// One of "added_tokens" or "added_tokens_decoder", without its id.
AddedToken parse_added_token(const Json& json, std::string_view where);

// Ids beyond this are refused: they would be allocated for.
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 20) - 1;

}  // namespace ei
