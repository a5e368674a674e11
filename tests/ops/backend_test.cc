#include "ei/ops/backend.h"

#include <gmock/gmock.h>

#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(MemoryTest);

TEST_P(MemoryTest, HoldsWhatIsCopiedIn) {
  for (const int64_t bytes : {1, 255, 4096, 3 << 20}) {
    void* data = backend().allocate(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 256, 0u) << bytes;
    std::vector<char> in(size_t(bytes), 'x'), out(size_t(bytes), 'y');
    backend().copy_in(data, in.data(), bytes);
    backend().copy_out(out.data(), data, bytes);
    EXPECT_EQ(in, out) << bytes;
    backend().release(data, bytes);
  }
}

TEST_P(MemoryTest, DiscardedMemoryCanBeUsedAgain) {
  const int64_t bytes = 5 << 20;
  auto* data = static_cast<char*>(backend().allocate(bytes));
  const std::vector<char> in(size_t(bytes), 'x');
  backend().copy_in(data, in.data(), bytes);
  backend().discard(data + 1000, bytes - 3000);
  char before = 0, after = 0;
  backend().copy_out(&before, data + 999, 1);
  backend().copy_out(&after, data + bytes - 2000, 1);
  EXPECT_EQ(before, 'x');
  EXPECT_EQ(after, 'x');
  backend().copy_in(data, in.data(), bytes);
  std::vector<char> out(size_t(bytes), 'y');
  backend().copy_out(out.data(), data, bytes);
  EXPECT_EQ(in, out);
  backend().release(data, bytes);
}

TEST_P(MemoryTest, TooMuchIsAnErrorWithBothNumbers) {
  EXPECT_GT(backend().available_bytes(), 0);
  const int64_t bytes = int64_t{1} << 50;
  try {
    backend().allocate(bytes);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("1125899906842624"));
    EXPECT_THAT(error.what(), testing::HasSubstr("available"));
  }
}

// Round after round of the same ops with other parameters, other ops in between, and a copy amid
// them: what a device that holds them back must see through.
TEST_P(MemoryTest, RepeatedOpsComputeWhatSingleOnesDo) {
  const DeviceAct x = act(normal<2>({3, 64}, 1)), y = act(normal<2>({3, 64}, 2));
  const DeviceArray<float, 1> weight = upload<float>(normal<1>({64}, 3));
  for (int round = 0; round < 8; ++round) {
    SCOPED_TRACE(round);
    const auto compute = [&](const Act& normed, const Act& out) {
      const float eps = round < 2 ? 1e-5f : 0.1f * static_cast<float>(round);
      backend().run(RmsNorm{.x = x, .weight = weight.view(), .eps = eps, .out = normed});
      if (round == 4)
        backend().run(RmsNorm{.x = y, .weight = weight.view(), .eps = 1, .out = normed});
      char byte = 0;
      if (round == 6) backend().copy_out(&byte, normed.data, 1);
      backend().run(SwiGlu{.gate = normed, .up = y, .out = out});
    };
    const DeviceAct normed = poisoned(3, 64), got = poisoned(3, 64), want = poisoned(3, 64);
    backend().repeat([&] { compute(normed, got); });
    const Matrix values = got.values();
    compute(normed, want);
    EXPECT_EQ(values.v, want.values().v);
  }
}

TEST_P(MemoryTest, NamesItself) { EXPECT_FALSE(backend().name().empty()); }

}  // namespace
}  // namespace ei::test
