#include "apps/cli/interrupt.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <latch>

namespace ei::cli {
namespace {

TEST(InterruptTest, TheFirstOneStopsTheWork) {
  Interrupts interrupts;
  for (int turn = 0; turn < 2; ++turn) {
    const Interrupts::Scope scope(interrupts);
    EXPECT_FALSE(scope.interrupted());
    std::latch stopped(1);
    const std::stop_callback on_stop(scope.token(), [&] { stopped.count_down(); });
    kill(getpid(), SIGINT);
    stopped.wait();
    EXPECT_TRUE(scope.interrupted());
  }
}

// In a process of its own, which waits for the end that the signal brings.
TEST(InterruptDeathTest, WithoutWorkItEndsTheProgram) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        Interrupts interrupts;
        kill(getpid(), SIGINT);
        for (;;) pause();
      },
      testing::ExitedWithCode(130), "");
}

TEST(InterruptDeathTest, TheSecondOneEndsTheProgram) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        Interrupts interrupts;
        const Interrupts::Scope scope(interrupts);
        std::latch stopped(1);
        const std::stop_callback on_stop(scope.token(), [&] { stopped.count_down(); });
        kill(getpid(), SIGINT);
        stopped.wait();
        kill(getpid(), SIGINT);
        for (;;) pause();
      },
      testing::ExitedWithCode(130), "");
}

}  // namespace
}  // namespace ei::cli
