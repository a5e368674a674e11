#pragma once

#include <algorithm>
#include <cstdint>

namespace ei {

enum class Pooling : uint8_t { kNone, kAvg, kMax, kBoth };
enum class GroupReduce : uint8_t { kMean, kMax };
// Whether a compressed cache holds one set of rows per KV head, or one per query head as released:
// G times the memory (METHOD.md 3, line 5).
enum class KvScope : uint8_t { kKvHead, kQueryHead };
// Whose attention decides what is kept.
enum class Voter : uint8_t {
  kWindow,    // the newest queries (METHOD.md section 2)
  kExpected,  // queries to come, as the newest let expect them (Expected Attention)
  kRepeat,    // those of the prompt's tokens as the model is made to repeat it (KVzip)
};
// How the rows of a budget are shared out and chosen (METHOD.md section 4).
enum class Split : uint8_t {
  kEven,       // every head of every layer its `budget` highest votes
  kAdaptive,   // heads of a layer share the layer's budget by where its highest votes are (AdaKV)
  kGlobal,     // the same of the heads of all layers together (KVzip)
  kPyramid,    // even, with budgets that fall from the first layer to the last (PyramidKV)
  kStreaming,  // no votes: the first rows and the last (StreamingLLM)
};

// DecodePolicy::gap: compress as soon as the written tokens no longer change what would be kept.
inline constexpr int64_t kAutoGap = -2;

// How the KV cache shrinks while decoding (METHOD.md section 2). full() never compresses.
struct DecodePolicy {
  int64_t budget = 1024;  // rows kept per head, the window among them
  Voter voter = Voter::kWindow;
  int64_t window = 32;  // newest queries that vote, and whose rows are always kept; kExpected: that
                        // are measured; kRepeat: tokens repeated at a time
  int64_t gap = 16;     // tokens decoded before compressing; -1: right after the prompt (SnapKV);
                        // kAutoGap: up to a window of them
  Pooling pooling = Pooling::kBoth;
  int64_t kernel = 21;    // width of the pool, odd; kBoth: of the wide one
  int64_t regrow = 1024;  // compress again when so many rows past the budget; 0: never
  GroupReduce reduce = GroupReduce::kMean;
  // kRepeat: a vote is not the attention that a row gets but how much it moves the hidden state by
  // it (KVzip+).
  bool by_output = false;
  KvScope scope = KvScope::kKvHead;
  Split split = Split::kEven;
  float floor = 0.2f;         // kAdaptive, kGlobal: share of an even budget every head is sure of
  int64_t pyramid_beta = 20;  // kPyramid: the last layer gets 1/beta of the even budget
  bool off_by_one = false;    // reference: one key after each query counts in its denominator

  static DecodePolicy full() {
    DecodePolicy policy;
    policy.budget = INT64_MAX;
    return policy;
  }
  static DecodePolicy reference() {
    DecodePolicy policy;
    policy.pooling = Pooling::kAvg;
    policy.kernel = 5;
    policy.regrow = 0;
    policy.scope = KvScope::kQueryHead;
    policy.off_by_one = true;
    return policy;
  }
  // The baselines, as their authors run them but for the rows of a head being one per KV head and
  // for growing again.
  static DecodePolicy snapkv() {
    DecodePolicy policy;
    policy.gap = -1;
    policy.pooling = Pooling::kAvg;
    policy.kernel = 5;
    return policy;
  }
  static DecodePolicy adakv() {
    DecodePolicy policy;
    policy.gap = -1;
    policy.pooling = Pooling::kMax;
    policy.kernel = 7;
    policy.split = Split::kAdaptive;
    return policy;
  }
  static DecodePolicy latent_adakv() {  // AdaKV's split of our votes
    DecodePolicy policy;
    policy.split = Split::kAdaptive;
    return policy;
  }
  static DecodePolicy pyramidkv() {
    DecodePolicy policy = snapkv();
    policy.split = Split::kPyramid;
    return policy;
  }
  static DecodePolicy streaming() {
    DecodePolicy policy;
    policy.gap = -1;
    policy.split = Split::kStreaming;
    return policy;
  }
  static DecodePolicy expected() {
    DecodePolicy policy;
    policy.voter = Voter::kExpected;
    policy.window = 512;
    policy.gap = -1;
    policy.pooling = Pooling::kNone;
    return policy;
  }
  static DecodePolicy kvzip() {
    DecodePolicy policy;
    policy.voter = Voter::kRepeat;
    policy.window = 512;
    policy.gap = -1;
    policy.pooling = Pooling::kMax;
    policy.kernel = 5;  // the authors' has no pool: a number of many tokens loses some
    policy.regrow = 0;
    policy.reduce = GroupReduce::kMax;
    policy.split = Split::kGlobal;
    policy.floor = 0;
    return policy;
  }
  static DecodePolicy kvzip_plus() {
    DecodePolicy policy = kvzip();
    policy.by_output = true;
    return policy;
  }
  bool is_full() const { return budget == INT64_MAX; }
  // Newest rows that are kept whatever the votes.
  int64_t kept_window() const { return voter == Voter::kWindow ? window : 0; }
  // Tokens decoded with the full cache at most.
  int64_t longest_gap() const { return gap == kAutoGap ? window : std::max<int64_t>(0, gap); }
};

// Throws Error naming the first setting that is out of range or does not fit another.
void validate(const DecodePolicy& policy);

}  // namespace ei
