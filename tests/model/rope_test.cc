#include "ei/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "ei/model/config.h"

namespace ei::test {
namespace {

// Frequencies known from elsewhere, by channel; they are given with nine digits.
void expect_frequencies(const RopeConfig& rope, int64_t d, const std::map<size_t, double>& want) {
  const RopeFrequencies got = rope_frequencies(rope, d);
  ASSERT_EQ(got.inv_freq.size(), static_cast<size_t>(d / 2));
  for (const auto& [k, value] : want)
    EXPECT_NEAR(got.inv_freq[k], value, 2e-7 * value) << "channel " << k;
}

TEST(Rope, Default) {
  const RopeConfig rope{.theta = 1e4};
  EXPECT_EQ(rope_frequencies(rope, 128).scale, 1);
  expect_frequencies(rope, 128, {{0, 1}, {16, 0.1}, {32, 0.01}, {63, std::pow(1e4, -63 / 64.)}});
  expect_frequencies(rope, 2, {{0, 1}});
}

TEST(Rope, Linear) {
  const RopeConfig rope{.type = RopeType::kLinear, .theta = 1e4, .factor = 2.5};
  EXPECT_EQ(rope_frequencies(rope, 128).scale, 1);
  expect_frequencies(rope, 128, {{0, 0.4}, {16, 0.04}, {32, 0.004}});
}

RopeConfig llama3(double factor) {
  return {.type = RopeType::kLlama3,
          .theta = 5e5,
          .factor = factor,
          .original_positions = 8192,
          .low_freq_factor = 1,
          .high_freq_factor = 4};
}

TEST(Rope, Llama31) {
  EXPECT_EQ(rope_frequencies(llama3(8), 128).scale, 1);
  expect_frequencies(llama3(8), 128,
                     {{0, 1},
                      {28, 0.00321144599},
                      {29, 0.00216657076},
                      {32, 0.000524846161},
                      {34, 0.000178507813},
                      {35, 9.55621235e-05},
                      {63, 3.06892599e-07}});
}

TEST(Rope, Llama32) {
  expect_frequencies(llama3(32), 64,
                     {{14, 0.00321144599},
                      {15, 0.00129054793},
                      {16, 0.000429556797},
                      {17, 9.7082878e-05},
                      {18, 1.94616382e-05},
                      {31, 9.41830673e-08}});
}

RopeConfig yarn() {
  return {.type = RopeType::kYarn, .theta = 1e6, .factor = 4, .original_positions = 32768};
}

TEST(Rope, Yarn) {
  expect_frequencies(yarn(), 128,
                     {{0, 1},
                      {23, 0.00697830585},
                      {30, 0.00106436098},
                      {40, 4.44569853e-05},
                      {63, 3.1023444e-07}});
  EXPECT_NEAR(rope_frequencies(yarn(), 128).scale, 1.138629436, 1e-7);
}

TEST(Rope, YarnScale) {
  RopeConfig rope = yarn();
  rope.factor = 1;
  EXPECT_EQ(rope_frequencies(rope, 128).scale, 1);
  rope.factor = 4;
  rope.mscale = 0.5;  // of the two, one alone does nothing
  EXPECT_NEAR(rope_frequencies(rope, 128).scale, 1.138629436, 1e-7);
  rope.mscale_all_dim = 2;
  EXPECT_NEAR(rope_frequencies(rope, 128).scale, (0.05 * std::log(4) + 1) / (0.2 * std::log(4) + 1),
              1e-6);
  rope.attention_factor = 0.75;
  EXPECT_EQ(rope_frequencies(rope, 128).scale, 0.75f);
}

TEST(Rope, YarnRampWithoutTruncation) {
  RopeConfig rope = yarn();
  rope.truncate = false;
  // The ramp goes from channel 23.597 to 39.651 instead of 23 to 40.
  const double low = 128 * std::log(32768 / (2 * M_PI * 32)) / (2 * std::log(1e6));
  const double high = 128 * std::log(32768 / (2 * M_PI)) / (2 * std::log(1e6));
  const auto want = [&](double k) {
    const double r = (k - low) / (high - low), f = std::pow(1e6, -k / 64);
    return f / 4 * r + f * (1 - r);
  };
  expect_frequencies(rope, 128,
                     {{23, std::pow(1e6, -23 / 64.)},
                      {24, want(24)},
                      {39, want(39)},
                      {40, std::pow(1e6, -40 / 64.) / 4}});
}

TEST(Rope, YarnRampOfASingleChannel) {
  RopeConfig rope = yarn();
  rope.beta_fast = rope.beta_slow = 1e4;  // both ends before the first channel
  const RopeFrequencies got = rope_frequencies(rope, 128);
  for (size_t k = 0; k < got.inv_freq.size(); ++k)
    EXPECT_TRUE(std::isfinite(got.inv_freq[k]) && got.inv_freq[k] > 0) << k;
}

// What transformers makes of config.json in many spellings (tools/make_rope_cases.py). It computes
// in float32: a power of theta is off by a few ulps of its exponent, and little is left of 1 - r
// where YaRN's ramp ends.
TEST(Rope, IsThatOfTransformers) {
  for (const Json& known : read_json(EI_SOURCE_DIR "/tests/model/data/rope.json")) {
    SCOPED_TRACE(known["name"]);
    const ModelConfig config = parse_config(known["config"], "config.json");
    const RopeFrequencies got = rope_frequencies(config.rope, config.head_dim);
    ASSERT_EQ(got.inv_freq.size(), known["inv_freq"].size());
    for (size_t k = 0; k < got.inv_freq.size(); ++k) {
      const double want = known["inv_freq"][k];
      EXPECT_NEAR(got.inv_freq[k], want, 1e-5 * want) << "channel " << k;
    }
    EXPECT_NEAR(got.scale, known["scale"].get<double>(), 1e-6);
  }
}

}  // namespace
}  // namespace ei::test
