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

TEST(DivergenceTest, RefusesWhatDoesNotFit) {
  DivergenceMeter meter;
  const std::vector<float> two(2), three(3);
  EXPECT_NE(test::error_of([&] { meter.add(two, three, 0); }), "");
  EXPECT_NE(test::error_of([&] { meter.add(two, two, 2); }), "");
  EXPECT_NE(test::error_of([&] { meter.result(); }), "");
}

}  // namespace
}  // namespace ei::eval
