#pragma once

#include <functional>
#include <string>

#include "ei/ops/allocate_budget.h"
#include "ei/ops/append_kv.h"
#include "ei/ops/compact_kv.h"
#include "ei/ops/decode_attention.h"
#include "ei/ops/embed.h"
#include "ei/ops/keep_top.h"
#include "ei/ops/matmul.h"
#include "ei/ops/rms_norm.h"
#include "ei/ops/rope.h"
#include "ei/ops/sample.h"
#include "ei/ops/save_queries.h"
#include "ei/ops/score_blocks.h"
#include "ei/ops/select_blocks.h"
#include "ei/ops/sparse_attention.h"
#include "ei/ops/swiglu.h"
#include "ei/ops/token_scores.h"
#include "ei/ops/vote.h"

namespace ei {

// The whole contract between the engine and the hardware: memory, and one overload of run() per op,
// all pure, so that a backend that misses one does not compile. Ops run in the order they are
// given; only copy_out waits for them. run() throws Error when check(op) does. One thread at a
// time.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;         // e.g. "CPU, AVX2, 2 threads"
  virtual int64_t act_bytes() const = 0;        // of one activation element
  virtual int64_t prompt_rows() const = 0;      // tokens to read at a time that fill the device
  virtual int64_t available_bytes() const = 0;  // memory that could be allocated now

  // Device memory, aligned to 256 bytes, contents undefined. allocate() throws Error when there is
  // not enough, naming both numbers.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* data, int64_t bytes) noexcept = 0;
  // Gives the physical memory of a range back while its addresses stay valid; contents are lost.
  virtual void discard(void* data, int64_t bytes) noexcept = 0;
  virtual void copy_in(void* device, const void* host, int64_t bytes) = 0;
  virtual void copy_out(void* host, const void* device, int64_t bytes) = 0;

  // A weight of the checkpoint where the ops can read it: the same memory if the device reads the
  // host's, else a copy that lives as long as the backend.
  virtual Weight place(const Weight& host) = 0;

  // Runs ops that come again and again in the same order, as those of a decode step do: a device
  // may hold them back and start them as one.
  virtual void repeat(const std::function<void()>& ops) { ops(); }

  virtual void run(const Embed& op) = 0;
  virtual void run(const RmsNorm& op) = 0;
  virtual void run(const MatMul& op) = 0;
  virtual void run(const RopeAngles& op) = 0;
  virtual void run(const Rope& op) = 0;
  virtual void run(const SwiGlu& op) = 0;
  virtual void run(const AppendKv& op) = 0;
  virtual void run(const ScoreBlocks& op) = 0;
  virtual void run(const AllocateBudget& op) = 0;
  virtual void run(const SelectBlocks& op) = 0;
  virtual void run(const SparseAttention& op) = 0;
  virtual void run(const DecodeAttention& op) = 0;
  virtual void run(const SaveQueries& op) = 0;
  virtual void run(const Vote& op) = 0;
  virtual void run(const PoolVotes& op) = 0;
  virtual void run(const KeepTop& op) = 0;
  virtual void run(const CompactKv& op) = 0;
  virtual void run(const TokenScores& op) = 0;
  virtual void run(const Sample& op) = 0;
};

}  // namespace ei
