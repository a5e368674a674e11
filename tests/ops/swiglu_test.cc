#include "ei/ops/swiglu.h"

#include "tests/ref/ref.h"
#include "tests/support/backend_test.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(SwiGluTest);

TEST_P(SwiGluTest, MatchesReference) {
  for (const int64_t rows : {0, 1, 3, 64})
    for (const int64_t cols : {1, 15, 17, 704, 1031})
      for (const bool in_place : {false, true}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << cols << " in place " << in_place);
        const DeviceAct gate = act(normal<2>({rows, cols}, 1, 4), 1);
        const DeviceAct up = act(normal<2>({rows, cols}, 2), 2);
        const Matrix want = ref::swiglu(gate.values(), up.values());
        const DeviceAct out = poisoned(rows, cols, 3);
        backend().run(SwiGlu{.gate = gate, .up = up, .out = in_place ? gate.act() : out.act()});
        EXPECT_LE(nmse((in_place ? gate : out).values().v, want.v), tolerance(1e-10));
      }
}

// Far from zero e^-t over- and underflows; silu is then 0 or the gate itself.
TEST_P(SwiGluTest, ExtremeGates) {
  Matrix gates({1, 4}), ones({1, 4}, 1.0);
  gates.v = {-200, -1e30, 200, 1e30};
  const DeviceAct gate = act(gates), up = act(ones), out = poisoned(1, 4);
  backend().run(SwiGlu{.gate = gate, .up = up, .out = out});
  const Matrix got = out.values(), g = gate.values();
  EXPECT_NEAR(got.v[0], 0, 1e-30);
  EXPECT_NEAR(got.v[1], 0, 1e-30);
  EXPECT_EQ(got.v[2], g.v[2]);
  EXPECT_EQ(got.v[3], g.v[3]);
}

TEST_P(SwiGluTest, RejectsOtherShapes) {
  EXPECT_THROW(
      backend().run(SwiGlu{.gate = poisoned(1, 8), .up = poisoned(1, 7), .out = poisoned(1, 8)}),
      Error);
}

}  // namespace
}  // namespace ei::test
