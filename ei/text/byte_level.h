#pragma once

#include <memory>
#include <string_view>

#include "ei/io/json.h"
#include "ei/text/tokenizer.h"
#include "ei/text/tokenizer_config.h"

namespace ei {

// Whether a tokenizer.json is of the kind make_byte_level() reads, as far as its decoder tells.
bool is_byte_level(const Json& tokenizer_json);

// Byte-level BPE (GPT-2's, Llama 3's, Qwen's) of a Hugging Face tokenizer.json, exactly:
//   added tokens -> NFC -> cut by regular expressions -> bytes -> merges in rank order
// Bytes that have no token are the unknown token, or nothing where the file names none.
// Throws Error naming `where` and the field that is malformed or not supported.
std::unique_ptr<Tokenizer> make_byte_level(const Json& tokenizer_json,
                                           const TokenizerConfig& config, std::string_view where);

}  // namespace ei
