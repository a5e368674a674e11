#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ei/grammar/grammar.h"
#include "ei/grammar/token_trie.h"

namespace ei::grammar {

// A grammar over a vocabulary, and what was found of it: where a byte leads, and which tokens may
// come. Both are looked for when first they are wanted, and shared by all answers. Any thread. A
// reader has some thousand threads at most: a byte that would lead to more is one that may not
// come.
class TokenGrammar {
 public:
  // Throws Error where no text can be written, or a reader begins with too many threads.
  TokenGrammar(Grammar grammar, std::shared_ptr<const TokenTrie> tokens);

 private:
  friend class Matcher;
  // All threads of a reader: each a node behind those that wait.
  using Thread = std::vector<int32_t>;
  using Threads = std::vector<Thread>;
  struct Hash {
    size_t operator()(const Threads& threads) const;
  };
  struct State {
    const Threads* threads = nullptr;
    bool can_end = false;
    std::array<State*, 256> next;  // of bytes; &Cache::unknown, or null: it may not come
    std::vector<uint32_t> allowed;
  };
  // States by their threads. A cache that has become too large is left to those that use it.
  struct Cache {
    std::unordered_map<Threads, State, Hash> states;
    State unknown;
    size_t size = 0;   // of everything, in numbers of 4 bytes
    size_t work = 0;   // threads that were looked at so far
    bool cut = false;  // whether some were left out, as there were too many
  };

  State* intern(Cache& cache, Threads threads) const;
  State* next(Cache& cache, State& state, uint8_t byte) const;
  void find_allowed(Cache& cache, State& state) const;
  void close(Thread thread, std::set<Thread>& seen, Threads& out) const;

  Grammar grammar_;
  const std::shared_ptr<const TokenTrie> tokens_;
  std::mutex mutex_;
  std::shared_ptr<Cache> cache_;
};

// Follows one answer, token by token.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<TokenGrammar> grammar);

  // The tokens that may come: bit i % 32 of word i / 32. Those that end a text are among them where
  // it may end. Valid until accept(). Throws Error when following the answer has become too much
  // work: everybody else's waits meanwhile; or when all that may come are too many ways at once.
  std::span<const uint32_t> allowed();
  bool can_end() const { return state_ != nullptr && state_->can_end; }
  bool must_end() const;  // nothing may follow
  // Whether the token may come; if not, nothing may any more.
  bool accept(int32_t token);
  bool accept(std::string_view bytes);

 private:
  std::shared_ptr<TokenGrammar> grammar_;
  std::shared_ptr<TokenGrammar::Cache> cache_;
  TokenGrammar::State* state_;
  size_t work_ = 0;  // done for this answer
};

}  // namespace ei::grammar
