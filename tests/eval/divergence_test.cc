#include "apps/eval/divergence.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/files.h"

namespace ei::eval {
namespace {

// Logits of given probabilities, shifted: only differences count.
std::vector<float> logits(std::vector<double> p, double shift) {
  std::vector<float> out;
  for (const double x : p) out.push_back(float(std::log(x) + shift));
  return out;
}

TEST(DivergenceTest, UnchangedIsZero) {
  DivergenceMeter meter;
  const auto a = logits({0.5, 0.3, 0.2}, 2), b = logits({0.1, 0.1, 0.8}, -3);
  meter.add(a, a, 1);
  meter.add(b, b, 2);
  const Divergence d = meter.result();
  EXPECT_EQ(d.n_tokens, 2);
  EXPECT_EQ(d.kld.value, 0);
  EXPECT_EQ(d.kld_percentiles.back(), 0);
  EXPECT_EQ(d.ppl_ratio.value, 1);
  EXPECT_EQ(d.ppl_ratio.error, 0);
  EXPECT_EQ(d.rms_dp.value, 0);
  EXPECT_EQ(d.same_top.value, 1);
}

TEST(DivergenceTest, ByHand) {
  DivergenceMeter meter;
  // Token 0: 0.5 -> 0.25, another likeliest. Token 1: 0.25 -> 0.5, the same likeliest.
  meter.add(logits({0.5, 0.25, 0.25}, 1), logits({0.25, 0.5, 0.25}, 0), 0);
  meter.add(logits({0.5, 0.25, 0.25}, -1), logits({0.5, 0.5, 1e-9}, 5), 1);
  const Divergence d = meter.result();
  const double ln2 = std::log(2);
  EXPECT_NEAR(d.ppl_base.value, std::exp((ln2 + 2 * ln2) / 2), 1e-6);
  EXPECT_NEAR(d.ppl.value, std::exp((2 * ln2 + ln2) / 2), 1e-6);
  EXPECT_NEAR(d.ppl_ratio.value, 1, 1e-6);
  // Of -ln 2 and ln 2: variance 2 ln2^2 over 2.
  EXPECT_NEAR(d.ppl_ratio.error, ln2, 1e-6);
  const double kld0 = 0.5 * ln2 - 0.25 * ln2;
  const double kld1 = -0.25 * ln2 + 0.25 * std::log(0.25 / 1e-9);
  EXPECT_NEAR(d.kld.value, (kld0 + kld1) / 2, 1e-5);
  EXPECT_NEAR(d.kld.error, std::abs(kld1 - kld0) / 2, 1e-5);
  EXPECT_NEAR(d.kld_percentiles.front(), kld0, 1e-5);
  EXPECT_NEAR(d.kld_percentiles.back(), kld1, 1e-5);
  EXPECT_NEAR(d.rms_dp.value, 0.25, 1e-6);
  EXPECT_NEAR(d.rms_dp.error, 0, 1e-6);
  EXPECT_EQ(d.same_top.value, 0.5);
  EXPECT_EQ(d.same_top.error, 0.5);
}

TEST(DivergenceTest, TheTokenIsTheOneMeant) {
  DivergenceMeter meter;
  for (int i = 0; i < 2; ++i) meter.add(logits({0.9, 0.1}, 0), logits({0.9, 0.1}, 0), i);
  EXPECT_NEAR(meter.result().ppl.value, 1 / std::sqrt(0.09), 1e-6);
  EXPECT_NEAR(meter.result().ppl.error, meter.result().ppl.value * std::log(9) / 2, 1e-5);
}

TEST(DivergenceTest, APackedBase) {
  // Of a vocabulary with a few likely tokens and many that hardly are.
  std::vector<float> base, other;
  for (int i = 0; i < 1000; ++i) {
    base.push_back(float(12 * std::sin(i) - 0.01 * i + 3));
    other.push_back(base.back() + float(0.3 * std::cos(7 * i)));
  }
  DivergenceMeter exact, packed, same;
  for (const int token : {2, 8}) {
    exact.add(base, other, token);
    packed.add(pack(base), other, token);
    same.add(pack(base), base, token);
  }
  // A step is 5e-4 nats; what it is off on average is less by the root of the likely tokens.
  EXPECT_NEAR(packed.result().kld.value, exact.result().kld.value, 2e-4);
  EXPECT_GT(exact.result().kld.value, 1e-2);
  EXPECT_NEAR(packed.result().nll_change.value, exact.result().nll_change.value, 5e-4);
  EXPECT_EQ(same.result().kld.value, 0);
  EXPECT_EQ(same.result().same_top.value, 1);
  // So unlikely that it does not count.
  EXPECT_EQ(pack(std::vector<float>{100, 50, -INFINITY}), (PackedLogits{0, 65535, 65535}));
  EXPECT_EQ(places_apart(7000, 49152), 1);
  EXPECT_EQ(places_apart(30000, 49152), 3);
}

TEST(DivergenceTest, TheDifferenceOfTwoMovesTogether) {
  DivergenceMeter a, b, both;
  const auto base = logits({0.5, 0.5}, 0), off = logits({0.9, 0.1}, 0),
             far = logits({0.99, 0.01}, 0);
  // Token by token b is further off by the same, however far a is.
  for (const auto& [near, further] : {std::pair(base, off), std::pair(base, off)}) {
    a.add(base, near, 0);
    b.add(base, further, 0);
  }
  EXPECT_NEAR(b.kld_minus(a).value, -0.5 * std::log(0.36), 1e-6);
  EXPECT_NEAR(b.kld_minus(a).error, 0, 1e-9);
  a.add(base, far, 0);
  EXPECT_NE(test::error_of([&] { a.kld_minus(b); }), "");  // not the same tokens
  b.add(base, far, 0);
  EXPECT_NEAR(b.kld_minus(a).value, -0.5 * std::log(0.36) * 2 / 3, 1e-6);
  both.add(a);
  both.add(b);
  EXPECT_EQ(both.n_tokens(), 6);
  EXPECT_NEAR(both.result().kld.value, (a.result().kld.value + b.result().kld.value) / 2, 1e-12);
}

TEST(DivergenceTest, RefusesWhatDoesNotFit) {
  DivergenceMeter meter;
  const std::vector<float> two(2), three(3);
  EXPECT_NE(test::error_of([&] { meter.add(two, three, 0); }), "");
  EXPECT_NE(test::error_of([&] { meter.add(two, two, 2); }), "");
  EXPECT_NE(test::error_of([&] { meter.result(); }), "");
}

}  // namespace
}  // namespace ei::eval
