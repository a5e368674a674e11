#include "ei/ops/select_mass.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "ei/base/error.h"
#include "tests/support/backend_fixture.h"

namespace ei::test {
namespace {

EI_BACKEND_TEST(SelectMassTest);

struct SelectCase {
  int64_t heads, first, n, segment, block, sink, local;
  float total, share;
  bool by_entropy = false;
};

// Shares of a few strong blocks and many weak ones, some of them equal.
void random_shares(const SelectCase& c, Array<float, 3>& mass, Array<float, 2>& own) {
  std::mt19937_64 random(5);
  for (int64_t h = 0; h < c.heads; ++h)
    for (int64_t s = 0; s < c.n; ++s) {
      const int64_t past = (c.first + s) * c.segment / c.block;
      float sum = own[h][s] = float(1 + random() % 64);
      for (int64_t b = 0; b < past; ++b)
        sum += mass[h][s][b] = float(random() % 4) * (random() % 9 == 0 ? 40.f : 1.f);
      for (int64_t b = 0; b < past; ++b) mass[h][s][b] /= sum;
      own[h][s] /= sum;
    }
}

// The rule of the op's header, word by word.
std::vector<int32_t> expected(const SelectCase& c, int64_t s, const float* mass, float own) {
  const int64_t past = (c.first + s) * c.segment / c.block;
  std::vector<int32_t> kept, others;
  float held = own, most = 0;
  const auto square = [](float x) { return double(x) * double(x); };
  double all = 0, of_kept = square(own) * double(c.block) / double(c.segment);
  for (int64_t b = 0; b < past; ++b) all += square(mass[b]);
  all += of_kept;
  for (int64_t b = 0; b < past; ++b) {
    most = std::max(most, mass[b]);
    const int64_t begin = b * c.block, end = begin + c.block;
    const bool always = begin < c.sink || end > (c.first + s) * c.segment - c.local;
    (always ? kept : others).push_back(int32_t(b));
    if (always) {
      held += mass[b];
      of_kept += square(mass[b]);
    }
  }
  const auto wanted = [&](int32_t b) {
    if (c.share > 0) return mass[b] >= c.share * most;
    if (c.total >= 1 || !c.by_entropy) return c.total >= 1 || held < c.total;
    const double variance = all - of_kept + square(1 - held) / square(held) * of_kept;
    return 4 * std::sqrt(variance) > 1 - double(c.total);
  };
  std::ranges::stable_sort(others, [&](int32_t a, int32_t b) { return mass[a] > mass[b]; });
  for (const int32_t b : others)
    if (wanted(b)) {
      kept.push_back(b);
      held += mass[b];
      of_kept += square(mass[b]);
    }
  std::ranges::sort(kept);
  return kept;
}

TEST_P(SelectMassTest, MatchesTheRule) {
  for (const SelectCase& c : {SelectCase{1, 0, 1, 8, 8, 0, 0, 0.5f, 0},
                              {2, 1, 4, 32, 16, 16, 128, 0.86f, 0},
                              {3, 60, 5, 32, 16, 16, 128, 0.5f, 0},
                              {1, 200, 3, 32, 8, 20, 100, 0.99f, 0},  // parts of blocks
                              {2, 9, 4, 128, 128, 128, 0, 0.9f, 0},
                              {2, 9, 4, 128, 128, 256, 512, 1, 0.1f},
                              {2, 40, 4, 16, 4, 0, 0, 0.7f, 0.3f},
                              {2, 1, 4, 32, 16, 16, 128, 0.86f, 0, true},
                              {3, 60, 5, 32, 16, 16, 128, 0.9f, 0, true},
                              {1, 200, 3, 32, 8, 20, 100, 0.95f, 0, true},
                              {1, 17000, 3, 8, 8, 16, 128, 1, 0.1f},  // do not fit shared memory
                              {1, 30, 2, 16, 8, 0, 0, 1, 0, true},
                              {1, 30, 2, 16, 8, 0, 0, 1, 0},              // everything
                              {1, 30, 2, 16, 8, 0, 0, 0, 0},              // nothing
                              {1, 30, 2, 16, 8, 1000, 1000, 0.1f, 0}}) {  // all of it always
    SCOPED_TRACE(testing::Message() << c.n << " segments from " << c.first << ", total " << c.total
                                    << ", share " << c.share);
    const int64_t width = std::max<int64_t>(1, (c.first + c.n - 1) * c.segment / c.block);
    Array<float, 3> mass({c.heads, c.n, width}, NAN);
    Array<float, 2> own({c.heads, c.n});
    random_shares(c, mass, own);
    const auto on_device = upload<float>(mass);
    const auto own_shares = upload<float>(own);
    const auto count = poisoned_array<int32_t, 2>({c.heads, c.n});
    const auto index = poisoned_array<int32_t, 3>({c.heads, c.n, width});
    SelectMass op{.mass = on_device.view(),
                  .own = own_shares.view(),
                  .first_segment = c.first,
                  .segment = c.segment,
                  .block = c.block,
                  .total = c.total,
                  .by_entropy = c.by_entropy,
                  .share = c.share,
                  .sink = c.sink,
                  .local = c.local,
                  .out = {count.view(), index.view()}};
    backend().run(op);
    for (int64_t h = 0; h < c.heads; ++h)
      for (int64_t s = 0; s < c.n; ++s) {
        const auto want = expected(c, s, mass[h][s].data, own[h][s]);
        ASSERT_EQ(download(count)[h][s], std::ssize(want));
        const auto got = download(index);
        const auto row = got[h][s];
        EXPECT_TRUE(std::equal(want.begin(), want.end(), row.data)) << h << " " << s;
      }
    op.dense_before = c.first + 1;
    op.dense_from = c.first + c.n - 1;
    backend().run(op);
    const auto some = download(count);
    for (int64_t h = 0; h < c.heads; ++h)
      for (int64_t s = 0; s < c.n; ++s)
        EXPECT_EQ(some[h][s] == kAllBlocks, s == 0 || s == c.n - 1) << s;
  }
}

TEST_P(SelectMassTest, WhatIsNotANumberIsSurvived) {
  Array<float, 3> mass({1, 1, 200}, NAN);
  for (int64_t b = 0; b < 200; b += 3) mass[0][0][b] = 0.01f;
  const auto on_device = upload<float>(mass);
  const auto own = upload<float>(Array<float, 2>({1, 1}, 0.1f));
  const auto count = poisoned_array<int32_t, 2>({1, 1});
  const auto index = poisoned_array<int32_t, 3>({1, 1, 200});
  backend().run(SelectMass{.mass = on_device.view(),
                           .own = own.view(),
                           .first_segment = 200,
                           .segment = 8,
                           .block = 8,
                           .total = 0.9f,
                           .out = {count.view(), index.view()}});
  EXPECT_GT(download(count)[0][0], 0);
  EXPECT_LE(download(count)[0][0], 200);
}

TEST_P(SelectMassTest, RejectsRoomForTooFewBlocks) {
  const auto mass = upload<float>(Array<float, 3>({1, 1, 10}, 0.1f));
  const auto own = upload<float>(Array<float, 2>({1, 1}, 0.f));
  const auto count = poisoned_array<int32_t, 2>({1, 1});
  const auto index = poisoned_array<int32_t, 3>({1, 1, 9});
  EXPECT_THROW(backend().run(SelectMass{.mass = mass.view(),
                                        .own = own.view(),
                                        .first_segment = 10,
                                        .segment = 8,
                                        .block = 8,
                                        .out = {count.view(), index.view()}}),
               Error);
}

}  // namespace
}  // namespace ei::test
