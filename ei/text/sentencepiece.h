#pragma once

#include <memory>
#include <string_view>

#include "ei/text/sentencepiece_model.h"
#include "ei/text/tokenizer.h"
#include "ei/text/tokenizer_config.h"

namespace ei {

// A SentencePiece BPE model (tokenizer.model of Llama 2, Mistral, openPangu):
//   added tokens -> each stretch between them: replace characters, a space in front, spaces to
//   U+2581 -> merges in the order of scores -> bytes for what has no piece
// Ids are those of Hugging Face's tokenizers without conversion ("slow"): CONTROL pieces and the
// added tokens of tokenizer_config.json are recognised in the text, and decode() gives them back
// as they are. Throws Error naming `where` and what is malformed or not supported.
std::unique_ptr<Tokenizer> make_sentencepiece(std::string_view model, const TokenizerConfig& config,
                                              std::string_view where);

// The same of a model that check() has passed.
std::unique_ptr<Tokenizer> make_sentencepiece(SentencePieceModel model,
                                              const TokenizerConfig& config,
                                              std::string_view where);

}  // namespace ei
