#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/files.h"
#include "tests/support/mixed_load.h"

namespace ei {
namespace {

using test::ProbedBackend;
using test::SmallEngine;

std::vector<std::vector<int32_t>> alone(Engine& engine, const std::vector<Request>& requests) {
  std::vector<std::vector<int32_t>> answers;
  for (const Request& request : requests)
    answers.push_back(Session(engine).generate(request).tokens);
  return answers;
}

// Whatever the backend fails at, one request ends with that error at most; the others' answers are
// what they were, and all memory is given back.
TEST(ContainmentTest, OneFailureEndsOneRequest) {
  SmallEngine small;
  const std::vector<Request> requests = test::mixed_requests();
  const auto want = alone(small.engine, requests);
  const int64_t bytes = small.backend->allocated_bytes;
  int64_t n_failed = 0;
  bool reached = true;
  for (int64_t k = 0; reached; ++k) {
    SCOPED_TRACE(testing::Message() << "call " << k);
    {
      Scheduler scheduler(small.engine, test::mixed_options(1 << 20));
      small.backend->calls_left = k;
      const std::vector<Outcome> got = test::run_together(scheduler, requests);
      reached = small.backend->calls_left < 0;
      small.backend->calls_left = INT64_MAX;
      n_failed += test::expect_one_error_at_most(scheduler, got, want, ProbedBackend::kFailure);
    }
    EXPECT_EQ(small.backend->allocated_bytes, bytes);
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(n_failed, 100);
}

// The same where pages go to the memory of a host and come back from there, as late as can be.
TEST(ContainmentTest, OneFailureBesideAHostsMemoryEndsOneRequest) {
  SmallEngine small;
  small.backend->has_host = true;
  const std::vector<Request> requests = test::mixed_requests();
  const auto want = alone(small.engine, requests);
  const int64_t bytes = small.backend->allocated_bytes;
  int64_t n_failed = 0;
  bool reached = true;
  for (int64_t k = 0; reached; k += 3) {
    SCOPED_TRACE(testing::Message() << "call " << k);
    {
      SchedulerOptions options = test::mixed_options(/*prefix_bytes=*/0);
      options.prefix_host_bytes = 1 << 20;
      Scheduler scheduler(small.engine, options);
      test::run_together(scheduler, requests);
      EXPECT_GT(scheduler.stats().prefix_host_bytes, 0);
      small.backend->calls_left = k;
      const std::vector<Outcome> got = test::run_together(scheduler, requests);
      reached = small.backend->calls_left < 0;
      small.backend->calls_left = INT64_MAX;
      n_failed += test::expect_one_error_at_most(scheduler, got, want, ProbedBackend::kFailure);
      const std::vector<Outcome> after = test::run_together(scheduler, requests);
      test::expect_one_error_at_most(scheduler, after, want, "none");
      EXPECT_GT(scheduler.stats().prefix_host_hits, 2 * SmallEngine::kSegment);
    }
    EXPECT_EQ(small.backend->allocated_bytes, bytes);
    EXPECT_EQ(small.backend->host.allocated_bytes, 0);
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(n_failed, 30);
}

// What a host has not, or a processor has not beside its own memory, is said at the start.
TEST(ContainmentTest, AHostsMemoryIsAskedForAtTheStart) {
  SmallEngine small;
  SchedulerOptions options = test::mixed_options(1 << 20);
  options.prefix_host_bytes = 1 << 20;
  EXPECT_THAT(test::error_of([&] { Scheduler(small.engine, options); }),
              testing::HasSubstr("--prefix-memory"));
  small.backend->has_host = true;
  small.backend->host.memory = 4 << 20;
  const int64_t bytes = small.backend->allocated_bytes;
  options.prefix_host_bytes = -1;
  {
    const Scheduler scheduler(small.engine, options);
    EXPECT_GT(small.backend->host.allocated_bytes, (1 << 20) - (1 << 15));
    EXPECT_LE(small.backend->host.allocated_bytes, 1 << 20);
  }
  EXPECT_EQ(small.backend->host.allocated_bytes, 0);
  EXPECT_EQ(small.backend->allocated_bytes, bytes);
}

// A session that failed half way is as good as new; one that refused a request is as it was.
TEST(ContainmentTest, ASessionGoesOnAfterAFailure) {
  SmallEngine small;
  Request request = test::mixed_requests()[0];
  const std::vector<int32_t> want = Session(small.engine).generate(request).tokens;
  Session session(small.engine, 1 << 20);
  session.generate(request);
  session.clear();
  const int64_t bytes = small.backend->allocated_bytes;
  bool reached = true;
  int64_t n_failed = 0, n_hurt = 0;
  for (int64_t k = 0; reached; ++k) {
    SCOPED_TRACE(k);
    small.backend->calls_left = k;
    std::vector<int32_t> got;
    const std::string error = test::error_of([&] { got = session.generate(request).tokens; });
    reached = small.backend->calls_left < 0;
    small.backend->calls_left = INT64_MAX;
    // What would only have helped a later prompt hurts no answer.
    if (error.empty()) {
      EXPECT_EQ(got, want);
    } else {
      EXPECT_EQ(error, reached ? ProbedBackend::kFailure : "");
    }
    n_failed += reached;
    n_hurt += !error.empty();
    EXPECT_EQ(session.generate(request).tokens, want);
    Request wrong = request;
    wrong.sampling->top_p = 7;
    EXPECT_NE(test::error_of([&] { session.generate(wrong); }), "");
    EXPECT_GE(session.generate(request).cached_tokens, 3 * SmallEngine::kSegment);
    session.clear();
    EXPECT_EQ(small.backend->allocated_bytes, bytes);
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(n_hurt, 50);
  EXPECT_LT(n_hurt, n_failed);
}

TEST(ContainmentTest, ACallbackThatThrowsEndsItsRequest) {
  SmallEngine small;
  const std::vector<Request> requests = test::mixed_requests();
  const auto want = alone(small.engine, requests);
  Scheduler scheduler(small.engine, test::mixed_options(0));
  std::vector<Job> jobs(requests.size());
  std::vector<std::promise<Outcome>> promises(requests.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i].request = requests[i];
    jobs[i].on_end = [&promises, i](Outcome outcome) {
      promises[i].set_value(std::move(outcome));
      throw 1;
    };
  }
  jobs[0].on_delta = [](const Delta& delta) {
    if (delta.n_tokens > 0) throw Error("no more");
  };
  jobs[2].on_prefill = [](auto...) { throw Error("no further"); };
  scheduler.submit(std::move(jobs));
  std::vector<Outcome> got;
  for (auto& promise : promises) got.push_back(promise.get_future().get());
  EXPECT_EQ(got[0].error, "no more");
  EXPECT_EQ(got[2].error, "no further");
  for (const size_t i : {size_t{1}, size_t{3}}) {
    EXPECT_FALSE(got[i].error);
    EXPECT_EQ(got[i].generation.tokens, want[i]);
  }
  EXPECT_EQ(test::run_together(scheduler, {requests[2]})[0].generation.tokens, want[2]);
  EXPECT_EQ(scheduler.stats().kv_bytes_used, 0);
}

// Of equal prompts one is read, whatever their answers are to be; the others go on from copies.
TEST(ForksTest, EqualPromptsAreReadOnce) {
  SmallEngine small;
  for (const int64_t n_prompt : {1, 15, 16, 17, 200}) {
    SCOPED_TRACE(n_prompt);
    std::vector<Request> requests(4, SmallEngine::request(n_prompt, 9));
    requests[0].decode = test::small_decode(2);
    requests[1].decode = test::small_decode(-1);
    requests[2].sampling = SamplingParams{.temperature = 1, .seed = 3};
    requests[3].sampling = SamplingParams{.temperature = 1, .repetition_penalty = 1.5f, .seed = 4};
    const auto want = alone(small.engine, requests);
    Scheduler scheduler(small.engine, test::mixed_options(0));
    const int64_t before = small.backend->n_tokens;
    const std::vector<Outcome> got = test::run_together(scheduler, requests);
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_FALSE(got[i].error) << *got[i].error;
      EXPECT_EQ(got[i].generation.tokens, want[i]) << i;
      EXPECT_EQ(got[i].generation.cached_tokens, i == 0 ? 0 : n_prompt);
    }
    // The first token of an answer comes with the prompt, and the last is not read any more.
    EXPECT_EQ(small.backend->n_tokens - before, n_prompt + 4 * 7);
    EXPECT_EQ(scheduler.stats().kv_bytes_used, 0);
  }
}

// Prompts that only begin alike read on from each other's segments, in turns.
TEST(ForksTest, AnEqualBeginningIsReadOnce) {
  SmallEngine small;
  const int64_t n_equal = 160;
  std::vector<Request> requests = {SmallEngine::request(200, 9), SmallEngine::request(200, 9)};
  for (size_t i = n_equal; i < 200; ++i) requests[1].tokens[i] += 7;
  const auto want = alone(small.engine, requests);
  Scheduler scheduler(small.engine, test::mixed_options(1 << 20));
  const int64_t before = small.backend->n_tokens;
  const std::vector<Outcome> got = test::run_together(scheduler, requests);
  for (const size_t i : {size_t{0}, size_t{1}}) {
    ASSERT_FALSE(got[i].error) << *got[i].error;
    EXPECT_EQ(got[i].generation.tokens, want[i]);
  }
  EXPECT_EQ(small.backend->n_tokens - before, n_equal + 2 * 40 + 2 * 7);
  EXPECT_EQ(got[0].generation.cached_tokens + got[1].generation.cached_tokens, n_equal);
}

TEST(ForksTest, AFollowerTakesOverFromALeaderThatIsCancelled) {
  SmallEngine small;
  const Request request = SmallEngine::request(200, 9);
  const std::vector<int32_t> want = Session(small.engine).generate(request).tokens;
  Scheduler scheduler(small.engine, test::mixed_options(0));
  std::vector<Job> jobs(3);
  std::vector<std::promise<Outcome>> promises(jobs.size());
  std::stop_source cancel;
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i].request = request;
    jobs[i].on_end = [&promises, i](Outcome outcome) { promises[i].set_value(std::move(outcome)); };
  }
  jobs[0].cancel = cancel.get_token();
  jobs[0].on_prefill = [&](int64_t done, int64_t, int64_t, double) {
    if (done > 100) cancel.request_stop();
  };
  scheduler.submit(std::move(jobs));
  const Outcome first = promises[0].get_future().get();
  EXPECT_EQ(first.generation.finish_reason, FinishReason::kCancelled);
  EXPECT_TRUE(first.generation.tokens.empty());
  const Outcome second = promises[1].get_future().get(), third = promises[2].get_future().get();
  EXPECT_EQ(second.generation.tokens, want);
  EXPECT_EQ(third.generation.tokens, want);
  EXPECT_EQ(second.generation.cached_tokens, 0);
  EXPECT_EQ(third.generation.cached_tokens, 200);
}

}  // namespace
}  // namespace ei
