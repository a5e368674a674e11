#pragma once

#include "ei/engine/engine_impl.h"

namespace ei {

// Device memory that a sequence takes at its most, by what it is for, in bytes. An upper bound that
// is close: tests hold it against what is allocated.
struct MemoryPlan {
  int64_t pages = 0;        // K, V and key bounds
  int64_t tables = 0;       // of pages and rows
  int64_t profile = 0;      // entropies, what is selected by them and what is made to attend to it
  int64_t window = 0;       // queries that vote
  int64_t compression = 0;  // votes, while there are any
  int64_t activations = 0;  // of the chunks of its prompt, one of which is read at a time

  int64_t sequence() const { return pages + tables + profile + window + compression; }
  int64_t total() const { return sequence() + activations; }
};

// Of a prompt of n_prompt tokens, n_total with its answer, whose cache is of `shape` (room for
// shape.max_tokens) in pages of page_bytes. keeps_whole: the end of the text is kept as it was
// before a compression, for a prefix cache (Context::whole()).
MemoryPlan plan_memory(const Engine::Impl& engine, const PrefillPolicy& prefill,
                       const DecodePolicy& decode, const KvShape& shape, int64_t page_bytes,
                       int64_t n_prompt, int64_t n_total, bool keeps_whole = false);

// The longest prompt whose plan, with an answer of n_answer tokens, is within `available` bytes; at
// most shape.max_tokens, 0: none.
int64_t longest_prompt(const Engine::Impl& engine, const PrefillPolicy& prefill,
                       const DecodePolicy& decode, const KvShape& shape, int64_t page_bytes,
                       int64_t n_answer, int64_t available);

}  // namespace ei
