#pragma once

#include <cstdint>

namespace ei {

enum class Pooling : uint8_t { kNone, kAvg, kMax };
enum class GroupReduce : uint8_t { kMean, kMax };
// Whether a compressed cache holds one set of rows per KV head, or one per query head as released:
// G times the memory (method.md 3, line 5).
enum class KvScope : uint8_t { kKvHead, kQueryHead };

// How the KV cache shrinks while decoding (method.md section 2). full() never compresses.
struct DecodePolicy {
  int64_t budget = 1024;  // rows kept per head, the window among them
  int64_t window = 32;    // newest queries that vote; their rows are always kept
  int64_t gap = 16;       // tokens decoded before compressing; -1: right after the prompt (SnapKV)
  Pooling pooling = Pooling::kMax;
  int64_t kernel = 21;    // width of the pool, odd
  int64_t regrow = 1024;  // compress again when so many rows past the budget; 0: never
  GroupReduce reduce = GroupReduce::kMean;
  KvScope scope = KvScope::kKvHead;
  bool off_by_one = false;  // reference: one key after each query counts in its denominator

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
  bool is_full() const { return budget == INT64_MAX; }
};

// Throws Error naming the first setting that is out of range or does not fit another.
void validate(const DecodePolicy& policy);

}  // namespace ei
