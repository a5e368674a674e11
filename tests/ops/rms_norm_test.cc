#include "ei/ops/rms_norm.h"

#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(RmsNormTest);

TEST_P(RmsNormTest, MatchesReference) {
  // From 132 rows on a GPU's threads take more of a row each, and of the widest not all of it.
  for (const int64_t rows : {0, 1, 2, 33, 150})
    for (const int64_t width : {1, 2, 15, 16, 17, 64, 80, 255, 4096, 4099, 20008})
      for (const bool in_place : {false, true}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << width << " in place " << in_place);
        const DeviceAct x = act(normal<2>({rows, width}, 1, 3), 1);
        const Vector weight = normal<1>({width}, 2);
        const Matrix want = ref::rms_norm(x.values(), weight, 0.5);
        const auto w = upload<float>(weight);
        const DeviceAct out = poisoned(rows, width, 3);
        const Act& to = in_place ? x.act() : out.act();
        backend().run(RmsNorm{.x = x, .weight = w.view(), .eps = 0.5f, .out = to});
        EXPECT_LE(nmse((in_place ? x : out).values().v, want.v), tolerance(1e-10));
      }
}

TEST_P(RmsNormTest, RejectsAWeightOfAnotherWidth) {
  const auto w = upload<float>(normal<1>({7}, 2));
  EXPECT_THROW(
      backend().run(RmsNorm{.x = poisoned(1, 8), .weight = w.view(), .out = poisoned(1, 8)}),
      Error);
}

}  // namespace
}  // namespace ei::test
