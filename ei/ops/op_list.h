#pragma once

#include "ei/ops/allocate_budget.h"
#include "ei/ops/append_kv.h"
#include "ei/ops/collectives.h"
#include "ei/ops/compact_kv.h"
#include "ei/ops/decode_attention.h"
#include "ei/ops/embed.h"
#include "ei/ops/estimate_mass.h"
#include "ei/ops/keep_top.h"
#include "ei/ops/matmul.h"
#include "ei/ops/rms_norm.h"
#include "ei/ops/rope.h"
#include "ei/ops/sample.h"
#include "ei/ops/save_queries.h"
#include "ei/ops/score_blocks.h"
#include "ei/ops/select_blocks.h"
#include "ei/ops/select_mass.h"
#include "ei/ops/sparse_attention.h"
#include "ei/ops/swiglu.h"
#include "ei/ops/token_scores.h"
#include "ei/ops/vote.h"

// Every op there is: EI_OPS(X) writes X(Op) for each. The only place that lists them; backends and
// what wraps a backend declare their overloads of run() from it.
#define EI_OPS(X)    \
  X(Embed)           \
  X(RmsNorm)         \
  X(MatMul)          \
  X(RopeAngles)      \
  X(Rope)            \
  X(SwiGlu)          \
  X(AppendKv)        \
  X(ScoreBlocks)     \
  X(AllocateBudget)  \
  X(SelectBlocks)    \
  X(EstimateMass)    \
  X(SelectMass)      \
  X(SparseAttention) \
  X(DecodeAttention) \
  X(SaveQueries)     \
  X(Vote)            \
  X(PoolVotes)       \
  X(KeepTop)         \
  X(CompactKv)       \
  X(TokenScores)     \
  X(Sample)          \
  X(ExpectVotes)     \
  X(ValueNorms)      \
  X(AllReduce)       \
  X(AllGather)

// The overload of a backend that computes the op itself, defined in the source named after the op.
#define EI_OVERRIDE_RUN(Op) void run(const Op& op) override;
