#include "ei/engine/token_trie.h"

#include "ei/engine/engine_impl.h"

namespace ei {

std::shared_ptr<const grammar::TokenTrie> make_token_trie(const Engine& engine) {
  const Engine::Impl& impl = engine.impl();
  std::vector<std::string> bytes(static_cast<size_t>(impl.n_ids()));
  std::vector<int32_t> ends;
  for (int32_t id = 0; id < static_cast<int32_t>(bytes.size()); ++id) {
    if (impl.eos.contains(id)) {
      ends.push_back(id);
    } else if (!impl.tokenizer->is_special(id)) {
      bytes[static_cast<size_t>(id)] = impl.tokenizer->token_bytes(id);
    }
  }
  return std::make_shared<grammar::TokenTrie>(bytes, std::move(ends));
}

}  // namespace ei
