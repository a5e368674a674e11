#include "ei/ops/swiglu.h"

#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

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

// The exponential over all of its range: silu of a negative gate is e^gate but for a factor near
// one. 2 ulp of bf16, 2^-7, would do; a polynomial of degree 4 is far better.
TEST_P(SwiGluTest, ExponentialIsAccurate) {
  Matrix gates({1, 24001}), ones({1, 24001}, 1.0);
  for (int64_t i = 0; i < 24001; ++i) gates[0][i] = -86 + 0.004 * double(i);
  const DeviceAct gate = act(gates), up = act(ones), out = poisoned(1, 24001);
  const Matrix want = ref::swiglu(gate.values(), up.values());
  backend().run(SwiGlu{.gate = gate, .up = up, .out = out});
  const Matrix got = out.values();
  const double relative = backend().act_bytes() == 4 ? 1e-5 : 0x1p-8;
  for (size_t i = 0; i < got.v.size(); ++i)
    ASSERT_NEAR(got.v[i], want.v[i], relative * std::abs(want.v[i]) + 1e-37) << gates.v[i];
}

TEST_P(SwiGluTest, RejectsOtherShapes) {
  EXPECT_THROW(
      backend().run(SwiGlu{.gate = poisoned(1, 8), .up = poisoned(1, 7), .out = poisoned(1, 8)}),
      Error);
}

}  // namespace
}  // namespace ei::test
