#include "ei/ops/embed.h"

#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(EmbedTest);

TEST_P(EmbedTest, MatchesReference) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32})
    for (const int64_t hidden : {1, 7, 64, 257})
      for (const int64_t misaligned : {0, 1}) {
        SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " hidden " << hidden);
        const HostWeight table(normal<2>({11, hidden}, 1), dtype, misaligned);
        const Array<int32_t, 1> tokens = [] {
          Array<int32_t, 1> t({5});
          t.v = {10, 0, 3, 3, 7};
          return t;
        }();
        const auto ids = upload<int32_t>(tokens);
        const DeviceAct out = poisoned(5, hidden, 1);
        backend().run(
            Embed{.tokens = ids.view(), .table = backend().place(table.weight()), .out = out});
        EXPECT_LE(nmse(out.values().v, ref::embed(tokens.v, table.values).v), tolerance(0));
      }
}

TEST_P(EmbedTest, ReadsQuantizedRows) {
  for (const WeightBlock& block : kWeightBlocks) {
    if (block.weights == 1) continue;
    SCOPED_TRACE(block.name);
    const HostWeight table(*weight_format(block.name), 11, 2304, 1, 1);
    Array<int32_t, 1> tokens({3});
    tokens.v = {10, 0, 3};
    const auto ids = upload<int32_t>(tokens);
    const DeviceAct out = poisoned(3, 2304, 1);
    backend().run(
        Embed{.tokens = ids.view(), .table = backend().place(table.weight()), .out = out});
    EXPECT_LE(nmse(out.values().v, ref::embed(tokens.v, table.values).v), tolerance(0));
  }
}

TEST_P(EmbedTest, NoTokens) {
  const HostWeight table(normal<2>({3, 8}, 1), DType::kBF16);
  backend().run(
      Embed{.tokens = {}, .table = backend().place(table.weight()), .out = poisoned(0, 8)});
}

TEST_P(EmbedTest, RejectsAnOutputOfAnotherWidth) {
  const HostWeight table(normal<2>({3, 8}, 1), DType::kBF16);
  EXPECT_THROW(backend().run(Embed{.tokens = {}, .table = table.weight(), .out = poisoned(0, 9)}),
               Error);
}

}  // namespace
}  // namespace ei::test
