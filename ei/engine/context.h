#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "ei/cache/kv_cache.h"
#include "ei/cache/prefix_cache.h"
#include "ei/cache/query_window.h"
#include "ei/engine/engine.h"
#include "ei/engine/engine_impl.h"
#include "ei/prefill/prefill.h"

namespace ei {

// What one conversation has read and what it needs to go on: tokens, cache, window and plan.
class Context {
 public:
  // Room for the model's longest context, with pages of its own, which `prefixes` (null: none) may
  // share as long as the policy stays the same: a conversation that goes on.
  explicit Context(Engine::Impl& engine, PrefixCache* prefixes = nullptr)
      : engine_(engine), prefixes_(prefixes) {}
  // Room for max_tokens only, with pages of `pool` and of the prefix cache (null: none).
  Context(Engine::Impl& engine, PagePool& pool, PrefixCache* prefixes, int64_t max_tokens)
      : engine_(engine), pool_(&pool), prefixes_(prefixes), max_tokens_(max_tokens) {}

  // Throws Error when a prompt of n_prompt tokens, n_total with its answer, or what the policies
  // need does not fit. Changes nothing.
  void check(int64_t n_prompt, int64_t n_total, const Request& request) const;

  // Makes cache and plan for such prompts, unless they are there.
  void prepare(const PrefillPolicy& prefill);
  // Readies everything for a prompt, to be read in chunks; how many of its first tokens are there
  // already is n_read() then. All of it is to be read, whatever is known, if Hidden::kAll are
  // wanted or nothing is to be reused; else what `prefixes` has of it is looked up before every
  // chunk.
  void begin(std::vector<int32_t> prompt, const PrefillPolicy& prefill, const DecodePolicy& decode,
             Hidden wanted, bool reuse = true);
  // The same for a prompt that another context has just read: goes on from a copy of its cache,
  // which shares all full pages, and of its window, which must be no smaller.
  void fork(Context& read, const DecodePolicy& decode);

  // Looks for more of the prompt among what is known, to be done before every chunk: others may
  // have read on since the last. False: it has loaded max_rows tokens from files, a page at least,
  // or some from the host's memory, and there are more; to be called again before anything is read.
  bool find_prefix(int64_t max_rows);
  // The next chunk, of max_rows tokens if it can; whole pages. Its hidden states, if they are
  // wanted, stay in `act`. Once its layers are read, end_chunk().
  ChunkReader next_chunk(Activations& act, int64_t max_rows);
  void end_chunk();
  // Throws Error naming the first layer that leaves the last row of `chunk`, which was read just
  // now, with a number that is not finite. For whoever has seen that its logits are not: reads the
  // chunk again, so that nothing has to be looked at as long as all is well.
  [[noreturn]] void blame_layer(Activations& act, const Chunk& chunk);
  // Has the cache compressed by `action`. What it drops and a conversation that goes on needs is
  // kept beside it: whole().
  void compress(const std::function<void()>& action);
  // The decode loop has read a token: its rows are in cache() and, if there is one, in whole().
  void wrote(int32_t token);
  // Takes such rows back where the token does not count.
  void rewind();
  void finish_answer();  // what can be reused of the answer, now that it is complete
  void clear();          // forgets everything and frees its memory

  int64_t n_prompt() const { return static_cast<int64_t>(prompt_.size()); }
  int64_t n_read() const { return cache_ ? cache_->n_tokens() : 0; }
  const std::vector<int32_t>& prompt() const { return prompt_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }  // of n_read(), written ones too
  int64_t n_cached() const { return n_cached_; }  // of n_read(), not read for this prompt
  int64_t n_host() const { return n_host_; }      // of n_cached(), from the host's memory
  int64_t n_loaded() const { return n_loaded_; }  // and from files
  // Why no more of the prompt was found before its first chunk; empty if nothing was wanted.
  const std::string& lost_prefix() const { return lost_; }
  // Rows that Activations need for this prompt's chunks.
  int64_t chunk_rows() const { return std::min(plan_->chunk_rows(n_prompt()), n_prompt()); }

  KvCache& cache() { return *cache_; }
  // The end of the text, from where keep_prefix() has not kept it, as it was read and written; once
  // the cache was compressed. Null: nobody wants it.
  KvCache* whole() { return whole_.get(); }
  // Readies it for a token, or does without it where memory is short.
  void reserve_whole() noexcept;
  QueryWindow& window() { return *window_; }
  PrefillPlan& plan() { return *plan_; }
  // Of a prompt that is read, over the heads of all ranks. Waits for the device, and the first time
  // for them.
  const PrefillStats& stats();

 private:
  KvShape kv_shape(const PrefillPolicy& prefill) const;
  int64_t own_prefix(int64_t window_rows) const;
  void keep_prefix();         // lets other requests reuse what was read of the prompt
  bool keeps_answer() const;  // for the conversation's next turn
  std::unique_ptr<QueryWindow> make_window(int64_t n_rows) const;

  Engine::Impl& engine_;
  PagePool* pool_ = nullptr;
  PrefixCache* prefixes_ = nullptr;
  int64_t max_tokens_ = 0;  // 0: the model's context
  std::string lost_;

  std::vector<int32_t> prompt_;
  int64_t limit_ = 0;  // so many of its tokens need not be read if they are known
  int64_t n_cached_ = 0, n_host_ = 0, n_loaded_ = 0;
  Hidden wanted_ = Hidden::kLast;
  std::vector<int32_t> tokens_;  // that the cache has read
  int64_t reusable_ = 0;         // of them, by a prompt that starts with them
  std::vector<int64_t> asked_;   // of whole pages that were found: PrefixCache::remember()
  std::unique_ptr<PagePool> own_pool_;
  std::unique_ptr<KvCache> cache_, whole_;
  std::unique_ptr<QueryWindow> window_;
  std::unique_ptr<PrefillPlan> plan_;  // null in a fork
  std::optional<PrefillStats> stats_;
};

}  // namespace ei
