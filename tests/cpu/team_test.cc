#include "ei/cpu/team.h"

#include <gtest/gtest.h>

#include <array>
#include <memory>

#include "ei/base/affinity.h"
#include "ei/cpu/parallel.h"

namespace ei::cpu {
namespace {

// Loops of all lengths after each other: every call once, by threads that there are, done when the
// loop returns.
TEST(TeamTest, MakesEveryCallOnce) {
  for (int repetition = 0; repetition < 300; ++repetition)
    for (const int n_threads : {2, 3, 8, 2})
      for (const int64_t n : {2, 3, 7, 100}) {
        std::vector<int> calls(static_cast<size_t>(n));  // not atomic: one thread writes each
        std::array<std::atomic<bool>, 8> busy = {};
        parallel_for(n_threads, n, [&](int64_t i, int thread) {
          ASSERT_LT(thread, n_threads);
          // No two calls at once have a thread's number.
          ASSERT_FALSE(busy[static_cast<size_t>(thread)].exchange(true));
          ++calls[static_cast<size_t>(i)];
          busy[static_cast<size_t>(thread)] = false;
        });
        ASSERT_EQ(calls, std::vector<int>(static_cast<size_t>(n), 1));
      }
}

// Calls that only get on together are on threads of their own.
TEST(TeamTest, ThreadsWorkAtOnce) {
  std::atomic<int> arrived = 0;
  parallel_for(3, 3, [&](int64_t) {
    ++arrived;
    while (arrived < 3) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 3);
}

// A thread that is kept in one call holds up nobody else's: the caller does the rest meanwhile.
TEST(TeamTest, NobodyWaitsForAThreadThatIsHeldUp) {
  std::atomic<int64_t> done = 0;
  std::atomic<bool> held = false;
  parallel_for(2, 100, [&](int64_t, int thread) {
    if (thread == 1) {
      held = true;
      while (done < 99) std::this_thread::yield();
    } else {
      while (!held) std::this_thread::yield();
    }
    ++done;
  });
  EXPECT_EQ(done, 100);
}

TEST(TeamTest, EveryCallerHasItsOwn) {
  std::vector<std::thread> callers;
  std::array<int64_t, 4> sums = {};
  for (int64_t& sum : sums)
    callers.emplace_back([&sum] {
      for (int64_t k = 0; k < 200; ++k) {
        std::array<int64_t, 50> squares = {};
        parallel_for(3, 50, [&](int64_t i) { squares[static_cast<size_t>(i)] = i * i; });
        for (const int64_t square : squares) sum += square;
      }
    });
  for (std::thread& caller : callers) caller.join();
  for (const int64_t sum : sums) EXPECT_EQ(sum, 200 * 40425);
}

TEST(TeamTest, EndsAtOnce) {
  for (int repetition = 0; repetition < 100; ++repetition) {
    Team team;
    std::atomic<int> calls = 0;
    const auto count = [](const void* calls, int64_t, int) {
      ++*static_cast<std::atomic<int>*>(const_cast<void*>(calls));
    };
    team.run(4, repetition % 3, count, &calls);
    EXPECT_EQ(calls, repetition % 3);
  }
}

// Where each thread of a loop may run, by its number; each takes a call of its own.
std::vector<std::vector<int>> places(int n_threads) {
  std::vector<std::vector<int>> cpus(static_cast<size_t>(n_threads));
  std::atomic<int> arrived = 0;
  parallel_for(n_threads, n_threads, [&](int64_t, int thread) {
    cpus[static_cast<size_t>(thread)] = allowed_cpus();
    ++arrived;
    while (arrived < n_threads) std::this_thread::yield();
  });
  return cpus;
}

TEST(TeamTest, PinnedThreadsHaveACpuEach) {
  const std::vector<int> all = allowed_cpus();
  if (all.size() < 2) GTEST_SKIP() << "one CPU: there is nowhere else to be pinned to";
  const int a = all.front(), b = all.back();
  using Places = std::vector<std::vector<int>>;
  std::thread([&] {
    EXPECT_EQ(places(3), Places(3, all));
    {
      const Pinned here({b, a});
      EXPECT_EQ(places(2), (Places{{b}, {a}}));  // one that was there
    }
    EXPECT_EQ(allowed_cpus(), all);                 // the caller goes where it was
    EXPECT_EQ(places(3), (Places{all, {a}, all}));  // and nobody has moved the others
    {
      const Pinned elsewhere({a, b});
      EXPECT_EQ(places(2), (Places{{a}, {b}}));
    }
    const Pinned nowhere({});
    EXPECT_EQ(places(3), Places(3, all));
  }).join();
  std::thread([&] {
    const Pinned here({a, b});
    EXPECT_EQ(places(2), (Places{{a}, {b}}));  // one that begins now
  }).join();
}

// Short calls are handed out in runs: every call once, whatever is left over.
TEST(TeamTest, MakesEveryShortCallOnce) {
  for (const int n_threads : {1, 2, 3, 16})
    for (const int64_t n : {0, 1, 7, 15, 16, 17, 47, 1000, 4099}) {
      std::vector<int> calls(static_cast<size_t>(n));
      parallel_for_short(n_threads, n, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
      ASSERT_EQ(calls, std::vector<int>(static_cast<size_t>(n), 1)) << n_threads << ", " << n;
    }
}

}  // namespace
}  // namespace ei::cpu
