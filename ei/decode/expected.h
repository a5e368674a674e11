#pragma once

#include <span>
#include <vector>

#include "ei/decode/compress.h"
#include "ei/model/config.h"

namespace ei {

// Where queries to come are expected to stand: so many positions behind the cache.
inline constexpr int64_t kExpectedPositions = 512;

// Mean [n_heads, d] and covariance [n_heads, d, d] of queries to come, as ExpectVotes takes them.
struct ExpectedQueries {
  std::vector<float> mean, covariance;
};

// From the newest queries [n, n_heads * d], RoPE applied, of the positions before `next`: they are
// turned back to before RoPE, and their mean and covariance by the mean rotation of the
// kExpectedPositions positions from `next` on (METHOD.md section 4).
ExpectedQueries expect_queries(const ModelConfig& config, std::span<const float> queries,
                               int64_t next);

// Votes of the queries that those in the window let expect, but those of the text's first
// kStreamingSinks tokens. Everything must outlive what is returned. Throws Error on a GPU,
// where they are not measured.
Compressor::Votes expected_votes(Backend& backend, const ModelConfig& config,
                                 const DecodePolicy& policy, const KvCache& cache,
                                 const QueryWindow& window);

}  // namespace ei
