#include "ei/base/thread_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "ei/base/fail.h"
#include "tests/support/files.h"

namespace ei {
namespace {

using test::error_of;
using Ranks = std::shared_ptr<Communicator>;

// What they do together is tested as an op (CollectivesTest); here, what becomes of them.
class ThreadRanksTest : public testing::Test {
 protected:
  static void meet(const Ranks& rank) {
    EXPECT_EQ(of_all(*rank, rank->rank() + 10), (std::vector<int>{10, 11, 12}));
    EXPECT_EQ(of_first(*rank, rank->rank() + 10), 10);
  }
  std::vector<std::string> ends_;
  ThreadRanks ranks_{3, [this](const std::string& why) { ends_.push_back(why); }};
};

TEST_F(ThreadRanksTest, MeetInEveryRun) {
  for (int i = 0; i < 3; ++i) ranks_.run(meet);
  EXPECT_EQ(ends_.size(), 0u);
}

TEST_F(ThreadRanksTest, WhatAllThrowAlikeEndsNothing) {
  EXPECT_EQ(error_of([&] { ranks_.run([](const Ranks&) { fail("no prompt"); }); }), "no prompt");
  ranks_.run(meet);
  EXPECT_EQ(ends_.size(), 0u);
}

TEST_F(ThreadRanksTest, OneThatThrowsEndsAll) {
  for (const int failing : {0, 1, 2}) {
    for (const bool others_wait : {true, false}) {
      std::vector<std::string> ends;
      ThreadRanks ranks(3, [&](const std::string& why) { ends.push_back(why); });
      const std::string named = fmt::format("rank {} of 3: no memory", failing);
      const auto work = [&](const Ranks& rank) {
        meet(rank);
        if (rank->rank() == failing) fail("no memory");
        if (!others_wait) return;
        EXPECT_EQ(error_of([&] { meet(rank); }), named);
      };
      EXPECT_EQ(error_of([&] { ranks.run(work); }), failing == 0 ? "no memory" : named);
      EXPECT_EQ(ends, std::vector{named});
      EXPECT_EQ(error_of([&] { ranks.run(meet); }), named);
      EXPECT_EQ(ends.size(), 1u);
    }
  }
}

TEST_F(ThreadRanksTest, OneThatGivesUpEndsAllAtOnce) {
  const std::string error = error_of([&] {
    ranks_.run([&](const Ranks& rank) {
      if (rank->rank() == 2) rank->abort("out of step");
      while (rank->failure().empty()) {
      }
      meet(rank);
    });
  });
  EXPECT_EQ(error, "rank 2 of 3: out of step");
  EXPECT_EQ(ends_, std::vector{error});
}

// It is waited for for seconds, whether it has something to say or to hear.
TEST_F(ThreadRanksTest, OneThatDoesNotComeEndsAll) {
  const auto error_when = [](const std::function<void(Communicator&)>& meeting) {
    std::promise<void> over;
    ThreadRanks ranks(2, [&](const std::string&) { over.set_value(); });
    return error_of([&] {
      ranks.run([&](const Ranks& rank) {
        of_all(*rank, 1);
        if (rank->rank() == 1) return over.get_future().wait();
        meeting(*rank);
      });
    });
  };
  auto gather = std::async(std::launch::async,
                           [&] { return error_when([](Communicator& rank) { of_all(rank, 1); }); });
  EXPECT_EQ(error_when([](Communicator& rank) { of_first(rank, 1); }),
            "1 of 2 ranks do not answer any more");
  EXPECT_EQ(gather.get(), "1 of 2 ranks do not answer any more");
}

// As a scheduler's followers, beside what rank 0 does elsewhere.
TEST_F(ThreadRanksTest, TheOthersRunAlone) {
  std::vector<int> who(3);
  ranks_.run([&](const Ranks& rank) { who[static_cast<size_t>(rank->rank())] = 1; }, /*first=*/1);
  EXPECT_EQ(who, (std::vector{0, 1, 1}));
}

}  // namespace
}  // namespace ei
