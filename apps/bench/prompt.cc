#include "apps/bench/prompt.h"

#include "apps/eval/document.h"

namespace ei::bench {

std::vector<int32_t> text_prompt(const Engine& engine, int64_t n) {
  eval::DocumentSpec spec;
  // A little more than enough: ids at the borders of sentences may join.
  spec.n_tokens = n + n / 16 + 64;
  const eval::Document document = eval::make_document(spec, [&](std::string_view text) {
    return static_cast<int64_t>(engine.tokenize(text).size());
  });
  std::vector<int32_t> tokens = engine.tokenize(document.text);
  while (static_cast<int64_t>(tokens.size()) < n)
    tokens.insert(tokens.end(), tokens.begin() + 1, tokens.end());
  tokens.resize(static_cast<size_t>(n));
  return tokens;
}

std::vector<int32_t> random_prompt(const Engine& engine, int64_t n) {
  const auto n_ids = static_cast<uint64_t>(engine.info().vocab_size);
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  uint64_t state = 1;
  for (int32_t& token : tokens) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    token = static_cast<int32_t>((state >> 33) % n_ids);
  }
  return tokens;
}

}  // namespace ei::bench
