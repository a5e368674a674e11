#include "ei/ops/rope.h"

#include "tests/ref/ref.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(RopeTest);

Vector frequencies(int64_t half) {
  Vector f({half});
  for (int64_t j = 0; j < half; ++j)
    f[j] = static_cast<float>(std::pow(1e6, -double(j) / double(half)));
  return f;
}

TEST_P(RopeTest, AnglesMatchReference) {
  Array<int32_t, 1> positions({6});
  positions.v = {0, 1, 2, 4095, 131071, 1 << 20};
  for (const int64_t half : {1, 8, 32, 40, 64})
    for (const float scale : {1.0f, 1.25f}) {
      const Vector inv_freq = frequencies(half);
      const ref::Angles want = ref::rope_angles(positions.v, inv_freq, scale);
      const auto p = upload<int32_t>(positions);
      const auto f = upload<float>(inv_freq);
      const auto cos = poisoned_array<float, 2>({6, half}),
                 sin = poisoned_array<float, 2>({6, half});
      backend().run(RopeAngles{.positions = p.view(),
                               .inv_freq = f.view(),
                               .scale = scale,
                               .cos = cos.view(),
                               .sin = sin.view()});
      const auto got_cos = download(cos), got_sin = download(sin);
      for (size_t i = 0; i < got_cos.v.size(); ++i) {  // 2 ulp of a float near 1, times scale
        EXPECT_NEAR(got_cos.v[i], want.cos.v[i], 2.4e-7 * scale) << half << " " << i;
        EXPECT_NEAR(got_sin.v[i], want.sin.v[i], 2.4e-7 * scale) << half << " " << i;
      }
    }
}

TEST_P(RopeTest, RotationMatchesReference) {
  for (const int64_t rows : {0, 1, 37})
    for (const int64_t half : {1, 8, 17, 32, 40, 64})
      for (const int64_t heads : {1, 3}) {
        SCOPED_TRACE(testing::Message() << rows << " rows, " << heads << " heads, d " << 2 * half);
        const DeviceAct x = act(normal<2>({rows, heads * 2 * half}, 1), 1);
        const ref::Angles angles = {normal<2>({rows, half}, 2), normal<2>({rows, half}, 3)};
        const Matrix want = ref::rope(x.values(), angles);
        const auto cos = upload<float>(angles.cos), sin = upload<float>(angles.sin);
        backend().run(Rope{.x = x, .cos = cos.view(), .sin = sin.view()});
        EXPECT_LE(nmse(x.values().v, want.v), tolerance(1e-12));  // three roundings a value
      }
}

// The same rotation of the same pairs, elsewhere.
TEST_P(RopeTest, InterleavedPairsAreNeighbours) {
  const int64_t rows = 5, half = 17, heads = 3;
  const DeviceAct x = act(normal<2>({rows, heads * 2 * half}, 1), 1);
  const auto moved = [&](const Matrix& from, bool to_halves) {
    Matrix to({rows, heads * 2 * half});
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t c = 0; c < heads * half; ++c)
        for (int64_t s = 0; s < 2; ++s) {
          const int64_t in_halves = c / half * 2 * half + s * half + c % half, pair = 2 * c + s;
          to[i][to_halves ? in_halves : pair] = from[i][to_halves ? pair : in_halves];
        }
    return to;
  };
  const ref::Angles angles = {normal<2>({rows, half}, 2), normal<2>({rows, half}, 3)};
  const Matrix want = moved(ref::rope(moved(x.values(), true), angles), false);
  const auto cos = upload<float>(angles.cos), sin = upload<float>(angles.sin);
  backend().run(Rope{.x = x, .cos = cos.view(), .sin = sin.view(), .interleaved = true});
  EXPECT_LE(nmse(x.values().v, want.v), tolerance(1e-12));
}

TEST_P(RopeTest, RejectsHeadsThatDoNotFit) {
  const auto angles = poisoned_array<float, 2>({1, 4});
  EXPECT_THROW(
      backend().run(Rope{.x = poisoned(1, 12), .cos = angles.view(), .sin = angles.view()}), Error);
}

}  // namespace
}  // namespace ei::test
