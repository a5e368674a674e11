#include "ei/ops/weight_blocks.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <random>

#include "ei/io/safetensors.h"

namespace ei::test {
namespace {

// tools/make_gguf_cases.py wrote random blocks, and what PyPI's gguf makes of them.
TEST(WeightBlocks, AreTheNumbersOfGgufsOwnTools) {
  const SafetensorsFile file(EI_SOURCE_DIR "/tests/data/weight_blocks.safetensors");
  for (const WeightBlock& block : kWeightBlocks) {
    if (block.weights == 1 || block.name == "FP8" || block.name == "INT8") continue;  // not GGUF's
    SCOPED_TRACE(block.name);
    const TensorInfo& blocks = file.tensors().at(std::string(block.name));
    const TensorInfo& values = file.tensors().at(fmt::format("{}.values", block.name));
    const int64_t n = values.size();
    ASSERT_EQ(row_bytes(*weight_format(block.name), n), blocks.size());
    std::vector<float> got(static_cast<size_t>(n)), want(got);
    std::memcpy(want.data(), values.data.data(), values.data.size());
    dequantize(*weight_format(block.name), blocks.data.data(), n, got.data());
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i]))
          << i << ": " << got[i] << ", expected " << want[i];
  }
}

// e4m3 by its definition: the sign, 4 bits of exponent, 3 of mantissa.
double e4m3(int bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  const double value =
      exponent == 0 ? mantissa * 0x1p-9 : std::ldexp(8 + mantissa, exponent - 7 - 3);
  return bits & 0x80 ? -value : value;
}

TEST(WeightBlocks, NumbersOfEightBits) {
  uint8_t block[36];
  const float scale = 0.37f;
  std::memcpy(block, &scale, sizeof scale);
  for (int first = 0; first < 256; first += 32) {
    float got[32];
    for (int i = 0; i < 32; ++i) block[4 + i] = static_cast<uint8_t>(first + i);
    dequantize(WeightFormat::kINT8, block, 32, got);
    for (int i = 0; i < 32; ++i) EXPECT_EQ(got[i], scale * static_cast<int8_t>(first + i));
    dequantize(WeightFormat::kFP8, block, 32, got);
    for (int i = 0; i < 32; ++i) {
      if (const int bits = first + i; (bits & 127) == 127) {
        EXPECT_TRUE(std::isnan(got[i]));
      } else {
        EXPECT_EQ(got[i], scale * static_cast<float>(e4m3(bits)));
      }
    }
  }
}

// Every number to the nearest that there is, and halfway to the even one.
TEST(WeightBlocks, RoundsToNearest) {
  for (int bits = 0; bits < 126; ++bits) {
    const double low = e4m3(bits), high = e4m3(bits + 1);
    EXPECT_EQ(to_e4m3(static_cast<float>(low)), bits);
    EXPECT_EQ(to_e4m3(static_cast<float>(-low)), bits | 0x80);
    EXPECT_EQ(to_e4m3(static_cast<float>(0.51 * low + 0.49 * high)), bits);
    EXPECT_EQ(to_e4m3(static_cast<float>(0.49 * low + 0.51 * high)), bits + 1);
    EXPECT_EQ(to_e4m3(static_cast<float>((low + high) / 2)), bits + bits % 2);
  }
  EXPECT_EQ(to_e4m3(1e9f), 126);
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {
    const double low = from_f16(static_cast<uint16_t>(bits));
    const double high = from_f16(static_cast<uint16_t>(bits + 1));
    ASSERT_EQ(to_f16(static_cast<float>(low)), bits);
    ASSERT_EQ(to_f16(static_cast<float>(-low)), bits | 0x8000);
    ASSERT_EQ(to_f16(static_cast<float>(0.51 * low + 0.49 * high)), bits);
    ASSERT_EQ(to_f16(static_cast<float>((low + high) / 2)), bits + bits % 2);
  }
  EXPECT_EQ(to_f16(65519), 0x7BFF);
  EXPECT_EQ(to_f16(65520), 0x7C00);
  EXPECT_EQ(to_f16(-INFINITY), 0xFC00);
  EXPECT_EQ(to_f16(NAN), 0x7E00);
}

// What is lost of normal numbers: 8 bits and a block's largest number, 2.4 deviations on average,
// leave (2.4 / 127)^2 / 12 of them; e4m3 2^-8 / 12 of each power of two; 4 bits (2 * 2.1 / 15)^2 /
// 12, a fifth less by least squares.
TEST(WeightBlocks, QuantizesWithLittleLoss) {
  const int64_t n = 64 * 256;
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(n), got(n);
  for (float& value : x) value = 0.02f * normal(random) + 0.003f;
  std::fill_n(x.begin() + 512, 256, 0.0f);
  std::fill_n(x.begin() + 1024, 256, 0.01f);
  const auto loss = [&](WeightFormat format) {
    std::vector<char> blocks(static_cast<size_t>(row_bytes(format, n)));
    EXPECT_TRUE(can_quantize(format));
    quantize(format, x.data(), n, blocks.data());
    dequantize(format, blocks.data(), n, got.data());
    double error = 0, square = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      error += std::pow(got[i] - x[i], 2);
      square += std::pow(x[i], 2);
    }
    return error / square;
  };
  EXPECT_LT(loss(WeightFormat::kBF16), 3e-6);
  EXPECT_LT(loss(WeightFormat::kQ8_0), 4e-5);
  EXPECT_LT(loss(WeightFormat::kFP8), 8e-4);
  EXPECT_LT(loss(WeightFormat::kQ4_1), 5.2e-3);
  EXPECT_LT(loss(WeightFormat::kQ4_K), 5.8e-3);
  for (size_t i = 512; i < 768; ++i) ASSERT_EQ(got[i], 0);
  // The scale is a half below its normal range: a rounding of 2^-25, 63 x 15 times.
  for (size_t i = 1024; i < 1280; ++i) ASSERT_NEAR(got[i], 0.01, 3e-5);
  EXPECT_FALSE(can_quantize(WeightFormat::kQ6_K));
}

TEST(WeightBlocks, FormatsHaveTheirNamesAndSizes) {
  EXPECT_EQ(weight_format("Q4_K"), WeightFormat::kQ4_K);
  EXPECT_EQ(weight_format("BF16"), WeightFormat::kBF16);
  EXPECT_EQ(weight_format("IQ2_XS"), std::nullopt);
  EXPECT_EQ(row_bytes(WeightFormat::kQ4_K, 512), 288);
  EXPECT_EQ(row_bytes(WeightFormat::kF32, 3), 12);
}

}  // namespace
}  // namespace ei::test
