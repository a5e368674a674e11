#pragma once

#include <functional>
#include <optional>
#include <span>
#include <stop_token>
#include <vector>

#include "ei/decode/decode.h"
#include "ei/decode/sampler.h"
#include "ei/engine/engine_impl.h"
#include "ei/engine/sequence.h"
#include "ei/prefill/prefill.h"

namespace ei {

// What one step does, decided by whoever schedules. In this order:
struct StepPlan {
  std::vector<Sequence*> compress;  // their caches are compressed,
  std::vector<Sequence*> write;     // they write a token each, in one batch,
  struct Read {                     // and one reads of its prompt.
    Sequence* sequence = nullptr;   // null: nobody does
    int64_t max_rows = INT64_MAX;   // of a chunk that begins now, or to be loaded from files in
                                    // its place; one page is the least
    int64_t n_layers = INT64_MAX;   // of the chunk, at most
    // They have the same prompt and prefill policy, windows no larger and no need of its hidden
    // states. Once the prompt is read they go on from a copy of it, with first tokens of their own.
    std::vector<Sequence*> followers;
  } read;
};

// Executes steps. What fails in one is the error of the sequence that it failed for, and ends it
// (Sequence::error); the others go on as if it had never been there.
class Batch {
 public:
  // Memory for n_sequences that write at a time, and for chunks of max_rows tokens of prompts with
  // the logits of max_logit_rows; it grows when a prompt needs more.
  Batch(Engine::Impl& engine, int64_t n_sequences, int64_t max_rows = 0,
        int64_t max_logit_rows = 0);

  void execute(const StepPlan& plan) noexcept;

  // The sequence of whose chunk some layers are read: the next that may read. Null: any may.
  const Sequence* mid_chunk() const { return chunk_ ? reading_ : nullptr; }
  // Forgets the chunk of a sequence that ends in the middle of it.
  void drop(const Sequence& sequence) noexcept {
    if (reading_ == &sequence) chunk_.reset();
  }

  // Reads and writes one sequence, until it ends or `cancel`; after_step is called after every
  // chunk and token. Throws what the sequence failed with.
  void run(Sequence& sequence, const std::stop_token& cancel,
           const std::function<void()>& after_step);

 private:
  void do_execute(const StepPlan& plan) noexcept;
  void read(const StepPlan::Read& plan);
  bool begin_chunk(Sequence& sequence, int64_t max_rows);  // false: pages were loaded instead
  void write(std::span<Sequence* const> sequences) noexcept;
  void try_write(std::span<Sequence* const> sequences);
  std::span<const int32_t> draw(const Act& logits, std::span<Sequence* const> sequences);

  Engine::Impl& engine_;
  std::optional<Activations> chunk_act_;  // of the chunk that is read
  Activations step_act_;                  // of a decode step, between two of its layers
  Decoder decoder_;
  Sampler sampler_;
  Sequence* reading_ = nullptr;
  std::optional<ChunkReader> chunk_;
  std::vector<Running> running_;
  std::vector<Sampler::Row> rows_;
  std::vector<Sequence*> writing_;
};

}  // namespace ei
