// Ranks of MPI that share a model, from outside.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "ei/io/json.h"
#include "tests/cli/program.h"
#include "tests/support/files.h"

namespace ei::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

// mpirun does not run for root unless root insists.
constexpr const char* kAsRoot = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ";

class MpiTest : public testing::Test {
 protected:
  void SetUp() override {
    if (EI_DYING_RANK[0] == '\0') GTEST_SKIP() << "built without MPI";
    std::string text;
    for (int i = 0; i < 60; ++i)
      text +=
          fmt::format("On day {} the keeper of the lighthouse counted {} ships. ", i, i * 37 % 101);
    test::write_file(dir_ / "text.txt", text);
  }

  // Under mpirun, with an end to all that hangs.
  static Finished run_ranks(int n, const std::string& arguments, const std::string& input = "",
                            const std::string& options = "") {
    return run_program(
        arguments, input,
        fmt::format("{}timeout 60 mpirun --oversubscribe -n {} {}", kAsRoot, n, options));
  }
  // Rank `rank` gets the signal in its call number `call`.
  static std::string dying(int rank, int call, int signal) {
    return fmt::format("-x LD_PRELOAD={} -x DYING_RANK={} -x DYING_CALL={} -x DYING_SIGNAL={}",
                       EI_DYING_RANK, rank, call, signal);
  }
  std::string question(const std::string& more) const {
    return fmt::format("run {} --threads 1 --ignore-eos --file {} --prompt 'How many ships?' {}",
                       test::kNeedle, (dir_ / "text.txt").string(), more);
  }

  test::TempDir dir_;
};

TEST_F(MpiTest, AnswersWhatOneProcessDoes) {
  for (const char* policy :
       {"--decode full", "--budget 256", "--prefill paper --decode adakv --budget 256"}) {
    const std::string arguments = question(fmt::format("--math f32 -n 24 {}", policy));
    const Finished want = run_program(arguments), got = run_ranks(2, arguments);
    EXPECT_EQ(got.exit_code, 0) << got.err;
    EXPECT_EQ(got.out, want.out) << policy;
  }
}

// Nothing is shared but the model's files and a network.
TEST_F(MpiTest, TwoHostsAnswerAsOneProcess) {
  const std::string arguments = question("--math f32 -n 24 --budget 256");
  const Finished got =
      run_program(arguments, "", kAsRoot + std::string(EI_SOURCE_DIR "/tests/cli/two_hosts"));
  if (got.exit_code == 77) GTEST_SKIP() << "network namespaces need root and ip (iproute2)";
  EXPECT_EQ(got.exit_code, 0) << got.err;
  EXPECT_EQ(got.out, run_program(arguments).out);
}

TEST_F(MpiTest, TheFirstRankReadsTheInputAndSpeaks) {
  const std::string arguments =
      fmt::format("run {} --threads 1 --raw --json -n 8 --temp 0", test::kNeedle);
  const Finished want = run_program(arguments, "Once upon a time"),
                 got = run_ranks(2, arguments, "Once upon a time");
  ASSERT_EQ(got.exit_code, 0) << got.err;
  EXPECT_EQ(parse_json(got.out, "stdout")["tokens"], parse_json(want.out, "stdout")["tokens"]);
  EXPECT_EQ(parse_json(got.out, "stdout")["kv"], parse_json(want.out, "stdout")["kv"]);
}

TEST_F(MpiTest, UnevenHeadsAreRefused) {
  const Finished got = run_ranks(3, question(""));
  EXPECT_EQ(got.exit_code, 1);
  EXPECT_EQ(got.out, "");
  EXPECT_THAT(got.err, HasSubstr("the number of KV heads is 2, which 3 ranks cannot share"));
}

TEST_F(MpiTest, WhatOneProcessDoesIsRefused) {
  for (const auto& [arguments, why] :
       {std::pair{"info " + test::kNeedle, "info is done by one process, not by 2 ranks"},
        {question("--session x"), "--session keeps one rank's cache"},
        {question("--nope"), "--nope is not a flag of run"}}) {
    const Finished got = run_ranks(2, arguments);
    EXPECT_EQ(got.exit_code, 1) << arguments;
    EXPECT_EQ(got.out, "");
    EXPECT_THAT(got.err, HasSubstr(why));
  }
}

// mpirun may say more than one rank's end; what it says names one, and the rank that failed says
// why.
TEST_F(MpiTest, AnErrorOfOneRankEndsAll) {
  const Finished got = run_program(
      question("-n 8"), "",
      fmt::format("{}timeout 60 mpirun --oversubscribe -n 1 {} run /not/there --prompt x : -n 1",
                  kAsRoot, EI_PROGRAM));
  EXPECT_EQ(got.exit_code, 1);
  EXPECT_THAT(got.err, HasSubstr("rank 0 of 2: /not/there"));
}

// Before it loads, once it has, while it reads, at the first token and while it writes.
TEST_F(MpiTest, AKilledRankEndsAll) {
  for (const int rank : {0, 1})
    for (const int call : {0, 1, 12, 24, 200}) {
      SCOPED_TRACE(testing::Message() << "rank " << rank << ", call " << call);
      const Finished got = run_ranks(2, question("--prefill dense --decode full -n 20"), "",
                                     dying(rank, call, SIGKILL));
      EXPECT_THAT(got.exit_code, testing::AllOf(testing::Gt(0), Not(124))) << got.err;
      EXPECT_THAT(got.err, HasSubstr(fmt::format("process rank {}", rank)));
      EXPECT_THAT(got.err, HasSubstr("signal 9"));
    }
}

// One that is stopped is waited for for seconds and what its work would take.
TEST_F(MpiTest, ARankThatHangsEndsAll) {
  for (const int rank : {0, 1}) {
    const Finished got = run_ranks(2, question("--prefill dense --decode full -n 20"), "",
                                   dying(rank, 100, SIGSTOP));
    EXPECT_THAT(got.exit_code, testing::AllOf(testing::Gt(0), Not(124))) << got.err;
    EXPECT_THAT(got.err, HasSubstr(fmt::format(
                             "rank {} of 2: another rank does not answer any more", 1 - rank)));
  }
}

TEST_F(MpiTest, ProcessesAreNotSharedOnceMore) {
  const Finished got = run_ranks(2, question("--tp 2"));
  EXPECT_EQ(got.exit_code, 1);
  EXPECT_THAT(got.err, HasSubstr("tp is 2, but several processes share the model already"));
}

}  // namespace
}  // namespace ei::cli
