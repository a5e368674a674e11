#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "ei/base/thread_ranks.h"
#include "ei/cache/kv_cache.h"
#include "ei/engine/engine.h"
#include "ei/model/model.h"
#include "ei/prefill/plan.h"
#include "ei/prefill/sketch.h"
#include "ei/text/chat_template.h"
#include "ei/text/tokenizer.h"

namespace ei {

struct Engine::Impl {
  EngineOptions options;
  std::unique_ptr<Backend> backend;  // outlives everything below
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat;
  SamplingParams default_sampling;
  std::set<int32_t> eos;  // any of them ends an answer
  double load_ms = 0;
  int64_t longest_token = 0;  // bytes
  std::vector<std::string> warnings;
  std::mutex mutex;                   // held by the session that runs
  std::optional<Sketch> made_sketch;  // once it was wanted; under `sketch_mutex`
  std::mutex sketch_mutex;
  // Of the first of EngineOptions::tp ranks: the others', and what they agree by.
  std::vector<Engine> others;
  std::unique_ptr<ThreadRanks> threads;

  void load(const std::filesystem::path& model);
  void load_directory(const std::filesystem::path& dir);
  void load_file(const std::filesystem::path& path);  // GGUF
  // Drops ends of answers that the vocabulary does not have, with a warning about `where`, and
  // looks for the longest token.
  void check_tokens(const std::string& where);
  void check_kv_type() const;  // against the model's heads

  std::vector<int32_t> encode_chat(std::span<const Message> messages, bool thinking) const;
  const ChatTemplate& chat_template() const;
  // Of the model, made when first it is wanted.
  const Sketch& sketch();
  // Ids that can be drawn: those the tokenizer knows, but none behind the embedding, where some
  // checkpoints have a [PAD].
  int64_t n_ids() const;
  // Of a cache and a plan with room for max_tokens.
  KvShape kv_shape(const PrefillPolicy& policy, int64_t max_tokens) const;
  PrefillPlan::Shape prefill_shape(const PrefillPolicy& policy, int64_t max_tokens) const;
  int64_t page_rows(const PrefillPolicy& policy) const;
};

}  // namespace ei
