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

// As a decode step does whose batch changes: few rows and many take other kernels, and a size that
// comes back finds what was kept of it.
TEST_P(MemoryTest, RepeatedOpsOfChangingBatchesComputeWhatSingleOnesDo) {
  const HostWeight first(normal<2>({40, 64}, 1), DType::kBF16),
      second(normal<2>({40, 64}, 2), DType::kBF16);
  const Weight weights[] = {backend().place(first.weight()), backend().place(second.weight())};
  const DeviceArray<float, 1> bias = upload<float>(normal<1>({40}, 3));
  const DeviceArray<float, 1> norm = upload<float>(normal<1>({64}, 4));
  uint64_t round = 0;
  for (const int64_t rows : {12, 12, 12, 12, 9, 9, 9, 12, 3, 12, 64, 64, 64, 3, 12}) {
    SCOPED_TRACE(round);
    const DeviceAct x = act(normal<2>({rows, 64}, ++round));
    const Weight& weight = weights[round % 4 == 3];
    const auto compute = [&](const Act& normed, const Act& out) {
      backend().run(RmsNorm{.x = x, .weight = norm.view(), .eps = 1e-5f, .out = normed});
      backend().run(
          MatMul{.x = normed, .parts = {{{.weight = weight, .bias = bias.view(), .out = out}}}});
      backend().run(SwiGlu{.gate = out, .up = out, .out = out});
    };
    const DeviceAct normed = poisoned(rows, 64), got = poisoned(rows, 40),
                    want = poisoned(rows, 40);
    backend().repeat([&] { compute(normed, got); });
    const Matrix values = got.values();
    compute(normed, want);
    EXPECT_EQ(values.v, want.values().v);
  }
}

TEST_P(MemoryTest, NamesItself) { EXPECT_FALSE(backend().name().empty()); }

}  // namespace
}  // namespace ei::test
