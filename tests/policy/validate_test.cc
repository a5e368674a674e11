#include <gtest/gtest.h>

#include <limits>

#include "ei/policy/sampling.h"
#include "tests/policy/extremes.h"
#include "tests/support/files.h"

namespace ei::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// One setting after the other beyond its range: refused by its name.
template <class Policy>
class Beyond {
 public:
  template <class Field, class... Values>
  void operator()(const std::string& name, Field field, Values... values) const {
    for (const auto value : {values...}) {
      Policy policy;
      field(policy) = value;
      const std::string error = error_of([&] { validate(policy); });
      EXPECT_TRUE(error.starts_with(name + " ")) << name << " = " << value << ": " << error;
    }
  }
};

TEST(ValidateTest, PrefillSettingsHaveRanges) {
  const Beyond<PrefillPolicy> beyond;
  using P = PrefillPolicy;
  const auto counts = [&](const char* name, auto field, int64_t below, int64_t above) {
    beyond(name, field, INT64_MIN, below, above, INT64_MAX);
  };
  counts(
      "segment", [](P & p) -> auto& { return p.segment; }, 0, 65537);
  counts(
      "block", [](P & p) -> auto& { return p.block; }, 0, 513);
  counts(
      "dense-layers", [](P & p) -> auto& { return p.dense_layers; }, -1, 1000001);
  counts(
      "dense-tail", [](P & p) -> auto& { return p.dense_tail; }, -1, kMostTokens + 1);
  counts(
      "sink", [](P & p) -> auto& { return p.sink; }, -1, kMostTokens + 1);
  counts(
      "local", [](P & p) -> auto& { return p.local; }, -1, kMostTokens + 1);
  counts(
      "stride", [](P & p) -> auto& { return p.stride; }, 0, 65537);
  beyond(
      "mass", [](P & p) -> auto& { return p.mass; }, -0.1f, 1.1f, kNan);
  beyond(
      "share", [](P & p) -> auto& { return p.share; }, -0.1f, 1.1f, kNan);
  // INT64_MAX is dense attention; every number near it would overflow.
  beyond(
      "threshold", [](P & p) -> auto& { return p.threshold_len; }, INT64_MIN, int64_t{-1},
      kMostTokens + 1, INT64_MAX - 7, INT64_MAX - 1);
  beyond(
      "base-budget", [](P & p) -> auto& { return p.budget.base; }, 7.f, 2e9f, kInf, kNan);
  beyond(
      "e-t", [](P & p) -> auto& { return p.budget.e_t; }, -1e-6f, 2e6f, kNan);
  beyond(
      "delta-t", [](P & p) -> auto& { return p.budget.delta_t; }, -1e-6f, 2e6f, kNan);
  beyond(
      "alpha", [](P & p) -> auto& { return p.budget.alpha; }, -1e-6f, 2e6f, kNan);
  beyond(
      "max-factor", [](P & p) -> auto& { return p.budget.max_factor; }, 0.9f, 2e6f, kNan);
  beyond(
      "fusion", [](P & p) -> auto& { return p.fusion; }, -0.1f, 1.1f, kNan);
}

TEST(ValidateTest, DecodeSettingsHaveRanges) {
  const Beyond<DecodePolicy> beyond;
  using P = DecodePolicy;
  const auto counts = [&](const char* name, auto field, int64_t below, int64_t above) {
    beyond(name, field, INT64_MIN, below, above, INT64_MAX);
  };
  counts(
      "window", [](P & p) -> auto& { return p.window; }, 0, 65537);
  counts(
      "decode-gap", [](P & p) -> auto& { return p.gap; }, -3, kMostTokens + 1);
  counts(
      "kernel", [](P & p) -> auto& { return p.kernel; }, 0, 4097);
  counts(
      "regrow", [](P & p) -> auto& { return p.regrow; }, -1, kMostTokens + 1);
  counts(
      "pyramid-beta", [](P & p) -> auto& { return p.pyramid_beta; }, 0, 1000001);
  beyond(
      "kernel", [](P & p) -> auto& { return p.kernel; }, 2);
  // INT64_MAX is the full cache.
  beyond(
      "budget", [](P & p) -> auto& { return p.budget; }, INT64_MIN, int64_t{0}, int64_t{32},
      kMostTokens + 1, INT64_MAX - 1);
  beyond(
      "floor", [](P & p) -> auto& { return p.floor; }, -0.1f, 1.1f, kNan);
}

TEST(ValidateTest, SamplingSettingsHaveRanges) {
  const Beyond<SamplingParams> beyond;
  using P = SamplingParams;
  beyond(
      "temperature", [](P & p) -> auto& { return p.temperature; }, -0.1f, 101.f, kNan);
  beyond(
      "top-k", [](P & p) -> auto& { return p.top_k; }, INT32_MIN, -2);
  beyond(
      "top-p", [](P & p) -> auto& { return p.top_p; }, -0.1f, 1.1f, kNan);
  beyond(
      "min-p", [](P & p) -> auto& { return p.min_p; }, -0.1f, 1.1f, kNan);
  beyond(
      "repetition-penalty", [](P & p) -> auto& { return p.repetition_penalty; }, 0.f, 101.f, kNan);
}

TEST(ValidateTest, TheEndsOfTheRangesAreTaken) {
  PrefillPolicy prefill;
  prefill.segment = 64;
  for (const auto& [name, policy] : extremes(prefill))
    EXPECT_EQ(error_of([&, &p = policy] { validate(p); }), "") << name;
  for (const auto& [name, policy] : extremes(DecodePolicy()))
    EXPECT_EQ(error_of([&, &p = policy] { validate(p); }), "") << name;
}

}  // namespace
}  // namespace ei::test
