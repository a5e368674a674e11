#pragma once

#include <memory>
#include <vector>

#include "ei/io/gguf.h"
#include "ei/text/chat_template.h"
#include "ei/text/tokenizer.h"

namespace ei {

// The tokenizer that a GGUF file's metadata describe: byte-level BPE ("gpt2"), whose pre-tokenizer
// is one of those known by name, or SentencePiece BPE ("llama"). Ids are those of the
// tokenizer.json or tokenizer.model that the file was made from. Throws Error naming the file and
// the key.
std::unique_ptr<Tokenizer> load_tokenizer(const GgufMetadata& keys);

// The ids that end an answer: eos, eot and eom by their keys, and control tokens whose names are
// known to.
std::vector<int32_t> end_ids(const GgufMetadata& keys, const Tokenizer& tokenizer);

// tokenizer.chat_template; nothing when there is none.
std::optional<ChatTemplate> load_chat_template(const GgufMetadata& keys,
                                               const Tokenizer& tokenizer);

}  // namespace ei
