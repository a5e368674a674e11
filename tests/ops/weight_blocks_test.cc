#include "ei/ops/weight_blocks.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>

#include "ei/io/safetensors.h"

namespace ei::test {
namespace {

// tools/make_gguf_cases.py wrote random blocks, and what PyPI's gguf makes of them.
TEST(WeightBlocks, AreTheNumbersOfGgufsOwnTools) {
  const SafetensorsFile file(EI_SOURCE_DIR "/tests/data/weight_blocks.safetensors");
  for (const WeightBlock& block : kWeightBlocks) {
    if (block.weights == 1) continue;
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

TEST(WeightBlocks, FormatsHaveTheirNamesAndSizes) {
  EXPECT_EQ(weight_format("Q4_K"), WeightFormat::kQ4_K);
  EXPECT_EQ(weight_format("BF16"), WeightFormat::kBF16);
  EXPECT_EQ(weight_format("IQ2_XS"), std::nullopt);
  EXPECT_EQ(row_bytes(WeightFormat::kQ4_K, 512), 288);
  EXPECT_EQ(row_bytes(WeightFormat::kF32, 3), 12);
}

}  // namespace
}  // namespace ei::test
