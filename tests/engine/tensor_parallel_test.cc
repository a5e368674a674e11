// One engine over several ranks of this process (EngineOptions::tp), on the CPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "ei/cuda/backend.h"
#include "ei/engine/engine_impl.h"
#include "ei/engine/scheduler.h"
#include "tests/end_to_end/documents.h"
#include "tests/support/backend_fixture.h"
#include "tests/support/files.h"
#include "tests/support/mixed_load.h"
#include "tests/support/numbers.h"
#include "tests/support/probed_backend.h"

namespace ei {
namespace {

using test::error_of;
using test::ProbedBackend;
using testing::HasSubstr;

EngineOptions options(int tp) {
  return {.device = Device::kCpu,
          .threads = tp,
          .kv_type = DType::kF32,
          .math = Math::kF32,
          .page = 32,
          .chunk = 64,
          .tp = tp};
}

std::vector<int32_t> text(int64_t n, int32_t seed = 0) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < n; ++i) tokens.push_back(300 + (i * 37 + seed * 101 + i * i % 11) % 3000);
  return tokens;
}

Request request(bool dense, int32_t seed = 0) {
  Request r;
  r.tokens = text(200, seed);
  r.prefill = dense ? PrefillPolicy::dense() : PrefillPolicy();
  r.prefill.segment = 32;
  r.prefill.block = 4;
  r.prefill.budget.base = 32;
  if (!dense) r.prefill.threshold_len = 32;
  r.prefill.dense_tail = 4;
  r.decode = dense ? DecodePolicy::full() : DecodePolicy::latent_adakv();
  if (!dense) {
    r.decode.budget = 48;
    r.decode.window = 8;
    r.decode.gap = 3;
  }
  r.sampling = SamplingParams{};
  r.max_tokens = 16;
  r.ignore_eos = true;
  return r;
}

TEST(TensorParallel, SessionsAnswerAndScoreAsOneRankDoes) {
  Engine one(test::kNeedle, options(1)), two(test::kNeedle, options(2));
  for (const bool dense : {true, false}) {
    SCOPED_TRACE(dense);
    const auto logits_of = [&](Engine& engine) {
      std::vector<float> logits;
      Session(engine).score(text(80), request(dense), 60, {.on_logits = [&](int64_t, auto row) {
                              logits.insert(logits.end(), row.begin(), row.end());
                            }});
      return logits;
    };
    // Sums of floats in another order.
    EXPECT_LT(test::nmse(logits_of(two), logits_of(one)), 1e-9);
    Session of_one(one, 1 << 24), of_two(two, 1 << 24);
    for (int turn = 0; turn < 2; ++turn) {
      Request r = request(dense);
      if (turn == 1) r.tokens = text(260);  // of which the session has read most
      const Generation want = of_one.generate(r), got = of_two.generate(r);
      EXPECT_EQ(got.tokens, want.tokens);
      EXPECT_EQ(got.cached_tokens, want.cached_tokens);
      EXPECT_EQ(got.sparsity.density, want.sparsity.density);
    }
  }
}

TEST(TensorParallel, ASchedulerServesAsOneRankDoes) {
  std::vector<Request> requests;
  for (int i = 0; i < 4; ++i) requests.push_back(request(i % 2 == 0, i));
  const auto serve = [&](int tp) {
    Engine engine(test::kNeedle, options(tp));
    SchedulerOptions scheduled;
    scheduled.prefill = requests[1].prefill;
    scheduled.kv_bytes = scheduled.prefix_bytes = 64 << 20;
    std::vector<std::vector<int32_t>> tokens;
    for (int life = 0; life < 2; ++life) {  // of one engine, one after the other
      Scheduler scheduler(engine, scheduled);
      for (const Outcome& outcome : test::run_together(scheduler, requests)) {
        EXPECT_FALSE(outcome.error) << *outcome.error;
        tokens.push_back(outcome.generation.tokens);
      }
    }
    return tokens;
  };
  EXPECT_EQ(serve(2), serve(1));
}

TEST(TensorParallel, WhatAllRanksRefuseLeavesThemUsable) {
  EngineOptions two = options(2);
  std::atomic<int> n_ends = 0;
  two.on_end = [&](const std::string&) { ++n_ends; };
  Engine engine(test::kNeedle, two);
  Session session(engine);
  Request empty = request(true);
  empty.tokens.clear();
  EXPECT_EQ(error_of([&] { session.generate(empty); }), error_of([&] {
              Engine one(test::kNeedle, options(1));
              Session(one).generate(empty);
            }));
  Request far = request(true);
  far.decode.budget = -1;
  EXPECT_NE(error_of([&] { session.generate(far); }), "");
  EXPECT_EQ(std::ssize(session.generate(request(true)).tokens), 16);
  SchedulerOptions none;
  none.max_sequences = 0;
  EXPECT_THAT(error_of([&] { Scheduler(engine, none); }), HasSubstr("max-sequences is 0"));
  EXPECT_EQ(std::ssize(session.generate(request(true)).tokens), 16);
  EXPECT_EQ(n_ends, 0);
}

TEST(TensorParallel, WhatCannotBeSharedIsRefused) {
  EXPECT_THAT(error_of([] { Engine(test::kNeedle, options(3)); }),
              HasSubstr("the number of KV heads is 2, which 3 ranks cannot share"));
  EXPECT_THAT(error_of([] { Engine(test::kNeedle, options(0)); }), HasSubstr("tp is 0"));
  Engine two(test::kNeedle, options(2));
  Session session(two, 1 << 20);
  EXPECT_THAT(error_of([&] { session.save("/tmp/x", {}, ""); }), HasSubstr("by one rank alone"));
}

// Of two ranks, one of which is watched by `probe`.
struct Probed {
  explicit Probed(int rank, EngineOptions two = options(2)) {
    two.on_end = [this](const std::string& why) {
      ++n_ends;
      ended.set_value(why);
    };
    engine.emplace(test::kNeedle, two);
    Engine::Impl& e = rank == 0 ? engine->impl() : engine->impl().others[0].impl();
    auto probed = std::make_unique<ProbedBackend>(std::move(e.backend));
    probe = probed.get();
    e.backend = std::move(probed);
  }
  std::promise<std::string> ended;
  std::atomic<int> n_ends = 0;
  std::optional<Engine> engine;
  ProbedBackend* probe;
};

// At the beginning, while it reads, while it writes.
TEST(TensorParallel, AFailureOfOneRankEndsAll) {
  for (const int rank : {0, 1})
    for (const int64_t call : {0, 60, 300}) {
      SCOPED_TRACE(testing::Message() << "rank " << rank << ", call " << call);
      Probed two(rank);
      two.probe->calls_left = call;
      const std::string named = "rank " + std::to_string(rank) + " of 2: this call was to fail";
      Session session(*two.engine);
      EXPECT_EQ(error_of([&] { session.generate(request(true)); }),
                rank == 0 ? ProbedBackend::kFailure : named);
      EXPECT_EQ(two.ended.get_future().get(), named);
      two.probe->calls_left = INT64_MAX;
      EXPECT_EQ(error_of([&] { session.generate(request(true)); }), named);
      EXPECT_EQ(two.n_ends, 1);
    }
}

TEST(TensorParallel, AFailureOfOneRankEndsWhatIsServed) {
  for (const int rank : {0, 1})
    for (const int64_t call : {60, 300}) {
      SCOPED_TRACE(testing::Message() << "rank " << rank << ", call " << call);
      Probed two(rank);
      SchedulerOptions scheduled;
      scheduled.prefill = request(true).prefill;
      scheduled.kv_bytes = scheduled.prefix_bytes = 64 << 20;
      scheduled.max_sequences = 2;
      Scheduler scheduler(*two.engine, scheduled);
      two.probe->calls_left = call;
      // Two are read or written, the third waits.
      const std::vector<Outcome> outcomes =
          test::run_together(scheduler, {request(true, 1), request(true, 2), request(true, 3)});
      const std::string why = two.ended.get_future().get();
      EXPECT_THAT(why, HasSubstr("rank " + std::to_string(rank) + " of 2: "));
      for (const Outcome& outcome : outcomes) {
        ASSERT_TRUE(outcome.error);
        EXPECT_THAT(*outcome.error, HasSubstr(ProbedBackend::kFailure));
      }
      EXPECT_THROW(scheduler.submit(Job{.request = request(true)}), Refusal);
      EXPECT_EQ(two.n_ends, 1);
    }
}

// It is waited for for seconds, and not for ever.
TEST(TensorParallel, ARankThatHangsEndsAll) {
  Probed two(1);
  std::shared_future<std::string> ended = two.ended.get_future().share();
  Session session(*two.engine);
  session.generate(request(true));
  two.probe->on_call = [&] { ended.wait(); };
  EXPECT_EQ(error_of([&] { session.generate(request(true, 1)); }),
            "1 of 2 ranks do not answer any more");
  EXPECT_EQ(two.n_ends, 1);
}

class TensorParallelCudaTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (n_gpus() < 2) GTEST_SKIP() << "this machine has no two GPUs";
  }
};
EI_TWO_GPUS_TEST(TensorParallelCudaTest);

TEST_P(TensorParallelCudaTest, TwoCardsAnswerAndServeAsOneDoes) {
  Engine one(test::kNeedle, {.device = Device::kCuda}),
      two(test::kNeedle, {.device = Device::kCuda, .tp = 2});
  const eval::Document document = test::make_document(one, 8192, 5);
  std::vector<Request> requests;
  for (const auto& [name, request] : test::policies()) {
    if (name == "entropy") continue;
    Session of_one(one, 1 << 28), of_two(two, 1 << 28);
    for (const int question : {2, 1})  // the second reads the question alone
      EXPECT_EQ(test::ask(of_two, document, document.needles[question], request).text,
                test::ask(of_one, document, document.needles[question], request).text)
          << name;
    Request& served = requests.emplace_back(request);
    served.tokens = one.tokenize(document.text);
    served.sampling = SamplingParams{};
    served.max_tokens = 32;
  }
  const auto serve = [&](Engine& engine) {
    SchedulerOptions scheduled;
    scheduled.kv_bytes = scheduled.prefix_bytes = int64_t{1} << 30;
    Scheduler scheduler(engine, scheduled);
    return test::run_together(scheduler, requests);
  };
  const std::vector<Outcome> want = serve(one), got = serve(two);
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_FALSE(got[i].error) << *got[i].error;
    EXPECT_EQ(got[i].generation.text, want[i].generation.text);
  }
}

TEST_P(TensorParallelCudaTest, AFailureOfOneCardEndsBoth) {
  for (const int rank : {0, 1})
    for (const int64_t call : {0, 60}) {
      SCOPED_TRACE(testing::Message() << "rank " << rank << ", call " << call);
      Probed two(rank, {.device = Device::kCuda, .tp = 2});
      two.probe->calls_left = call;
      Request long_one = request(true);
      long_one.tokens = text(4096);
      EXPECT_THAT(error_of([&] { Session(*two.engine).generate(long_one); }),
                  HasSubstr(ProbedBackend::kFailure));
      EXPECT_THAT(two.ended.get_future().get(), HasSubstr(ProbedBackend::kFailure));
    }
}

}  // namespace
}  // namespace ei
