#pragma once

#include <string>
#include <utility>
#include <vector>

#include "ei/policy/decode_policy.h"
#include "ei/policy/prefill_policy.h"

namespace ei::test {

template <class Policy>
using Named = std::vector<std::pair<std::string, Policy>>;

inline constexpr int64_t kMostTokens = int64_t{1} << 30;

// `start` with one setting after the other at each end of its range.
inline Named<PrefillPolicy> extremes(const PrefillPolicy& start) {
  Named<PrefillPolicy> all;
  const auto add = [&](const char* name, auto&& field, auto... values) {
    for (const auto value : {values...}) field(all.emplace_back(name, start).second) = value;
  };
  using P = PrefillPolicy;
  add(
      "segment", [](P & p) -> auto& { return p.segment; }, 64, 65536);
  add(
      "block", [](P & p) -> auto& { return p.block; }, 1, 64);
  add(
      "base-budget", [](P & p) -> auto& { return p.budget.base; }, 8.f, 0x1p30f);
  add(
      "e-t", [](P & p) -> auto& { return p.budget.e_t; }, 0.f, 1e6f);
  add(
      "delta-t", [](P & p) -> auto& { return p.budget.delta_t; }, 0.f, 1e6f);
  add(
      "alpha", [](P & p) -> auto& { return p.budget.alpha; }, 0.f, 1e6f);
  add(
      "max-factor", [](P & p) -> auto& { return p.budget.max_factor; }, 1.f, 1e6f);
  add(
      "threshold", [](P & p) -> auto& { return p.threshold_len; }, int64_t{0}, kMostTokens,
      PrefillPolicy::dense().threshold_len);
  add(
      "dense-layers", [](P & p) -> auto& { return p.dense_layers; }, 0, 1000000);
  add(
      "dense-tail", [](P & p) -> auto& { return p.dense_tail; }, int64_t{0}, kMostTokens);
  add(
      "fusion", [](P & p) -> auto& { return p.fusion; }, 0.f, 1.f);
  add(
      "sink", [](P & p) -> auto& { return p.sink; }, int64_t{0}, kMostTokens);
  add(
      "local", [](P & p) -> auto& { return p.local; }, int64_t{0}, kMostTokens);
  add(
      "mass", [](P & p) -> auto& { return p.mass; }, 0.f, 1.f);
  add(
      "share", [](P & p) -> auto& { return p.share; }, 0.f, 1.f);
  // The largest budget there is.
  PrefillPolicy& most = all.emplace_back("budget rule", start).second;
  most.budget = {.base = 0x1p30f, .e_t = 0, .delta_t = 0, .alpha = 1e6f, .max_factor = 1e6f};
  return all;
}

inline Named<DecodePolicy> extremes(const DecodePolicy& start) {
  Named<DecodePolicy> all;
  const auto add = [&](const char* name, auto&& field, auto... values) {
    for (const auto value : {values...}) field(all.emplace_back(name, start).second) = value;
  };
  using P = DecodePolicy;
  add(
      "budget", [](P & p) -> auto& { return p.budget; }, start.window + 1, kMostTokens,
      DecodePolicy::full().budget);
  add(
      "window", [](P & p) -> auto& { return p.window; }, int64_t{1}, start.budget - 1);
  add(
      "decode-gap", [](P & p) -> auto& { return p.gap; }, kAutoGap, int64_t{-1}, kMostTokens);
  add(
      "kernel", [](P & p) -> auto& { return p.kernel; }, 1, 4095);
  add(
      "regrow", [](P & p) -> auto& { return p.regrow; }, int64_t{0}, kMostTokens);
  for (const Split split : {Split::kAdaptive, Split::kPyramid}) {
    DecodePolicy shared = start;
    shared.split = split;
    for (const float floor : {0.f, 1.f}) all.emplace_back("floor", shared).second.floor = floor;
    for (const int64_t beta : {1, 1000000})
      all.emplace_back("pyramid-beta", shared).second.pyramid_beta = beta;
  }
  DecodePolicy& streaming = all.emplace_back("budget of streaming", start).second;
  streaming.split = Split::kStreaming;
  streaming.budget = 5;
  DecodePolicy& wide = all.emplace_back("window and budget", start).second;
  wide.window = 65536;
  wide.budget = 65537;
  return all;
}

}  // namespace ei::test
