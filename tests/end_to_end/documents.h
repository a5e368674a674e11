#pragma once

#include <map>
#include <string>

#include "apps/eval/document.h"
#include "ei/engine/engine.h"

namespace ei::test {

// Four needles in so many of the engine's tokens.
inline eval::Document make_document(const Engine& engine, int64_t n_tokens, uint64_t seed) {
  return eval::make_document(
      {.n_tokens = n_tokens, .n_needles = 4, .seed = seed},
      [&](std::string_view text) { return int64_t(engine.tokenize(text).size()); });
}

// Every kind of policy, by name.
inline std::map<std::string, Request> policies() {
  Request dense, entropy, latent;
  dense.prefill = PrefillPolicy::dense();
  dense.decode = entropy.decode = DecodePolicy::full();
  return {{"dense", dense}, {"entropy", entropy}, {"entropy and latent", latent}};
}

inline Generation ask(Session& session, const eval::Document& document, const eval::Needle& needle,
                      Request request) {
  request.messages = {{"user", {document.text, needle.question()}}};
  request.max_tokens = 48;
  return session.generate(request);
}

}  // namespace ei::test
