#pragma once

#include <memory>

#include "ei/engine/engine.h"
#include "ei/grammar/token_trie.h"

namespace ei {

// The engine's vocabulary as grammars see it: control tokens are in no text, and what ends answers
// ends texts. It takes about 16 bytes for every byte of a token.
std::shared_ptr<const grammar::TokenTrie> make_token_trie(const Engine& engine);

}  // namespace ei
