#pragma once

#include "ei/decode/compress.h"
#include "ei/engine/context.h"

namespace ei {

// What votes for the rows of a conversation's cache where its window does not (METHOD.md section
// 4); nothing for policies whose window votes. Valid as long as the cache is not appended to.
// Throws Error where the backend cannot do it, or the prompt leaves no room to be repeated.
Compressor::Votes make_votes(Engine::Impl& engine, const PrefillPolicy& prefill,
                             const DecodePolicy& decode, Context& context);

// What that takes of a prompt of n_prompt tokens, beside what compressing it takes.
struct VotesMemory {
  int64_t n_pages = 0;  // beside those of the prompt
  int64_t bytes = 0;    // of the device, for all else
};
VotesMemory memory_of_votes(const Engine::Impl& engine, const PrefillPolicy& prefill,
                            const DecodePolicy& decode, const KvShape& shape, int64_t n_prompt);

}  // namespace ei
