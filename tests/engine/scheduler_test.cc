#include "ei/engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "apps/eval/document.h"
#include "tests/support/files.h"

namespace ei {
namespace {

constexpr int64_t kSegment = 128;

// A request under way, and everything heard of it.
struct Heard {
  std::promise<Outcome> promise;
  std::future<Outcome> future = promise.get_future();
  std::string text;
  std::vector<TokenReport> reports, prompt_reports;
  std::vector<std::string> events;  // "read 128", "token"; guarded by the order of callbacks
  std::stop_source cancel;
};

class SchedulerTest : public testing::Test {
 protected:
  // On a processor: a GPU rounds a batch's products otherwise than those of one sequence.
  static void SetUpTestSuite() {
    engine_ = new Engine(test::kNeedle,
                         {.device = Device::kCpu, .threads = 1, .page = kSegment, .chunk = 512});
  }
  static void TearDownTestSuite() { delete engine_; }
  static Engine& engine() { return *engine_; }

  // Sparse from the second segment on, compressed to 128 entries: small prompts see everything.
  static Request request(int64_t n_prompt, uint64_t seed = 1) {
    const eval::Document document = eval::make_document(
        {.n_tokens = n_prompt, .n_needles = 2, .seed = seed},
        [&](std::string_view text) { return int64_t(engine().tokenize(text).size()); });
    Request request;
    request.tokens = engine().tokenize(document.text);
    request.prefill.segment = kSegment;
    request.prefill.budget.base = 64;
    request.prefill.threshold_len = kSegment;
    request.decode.budget = 192;
    request.max_tokens = 32;
    request.ignore_eos = true;
    return request;
  }
  static SchedulerOptions options() {
    SchedulerOptions options;
    options.prefill = request(8).prefill;
    options.kv_bytes = 1 << 30;
    options.prefix_bytes = 1 << 28;
    return options;
  }
  static std::unique_ptr<Heard> submit(Scheduler& scheduler, const Request& request,
                                       std::function<void(const Delta&)> on_delta = {},
                                       SequenceOptions options = {},
                                       std::vector<std::string>* log = nullptr,
                                       const std::string& name = "") {
    auto heard = std::make_unique<Heard>();
    Heard* h = heard.get();
    Job job;
    job.request = request;
    job.options = std::move(options);
    job.cancel = h->cancel.get_token();
    job.on_prefill = [=](int64_t done, int64_t, int64_t, double) {
      if (log) log->push_back(name + " read " + std::to_string(done));
    };
    job.on_delta = [=](Delta delta) {
      h->text += delta.text;
      h->reports.insert(h->reports.end(), delta.reports.begin(), delta.reports.end());
      h->prompt_reports.insert(h->prompt_reports.end(), delta.prompt_reports.begin(),
                               delta.prompt_reports.end());
      if (log && delta.n_tokens > 0) log->push_back(name + " token");
      if (on_delta) on_delta(delta);
    };
    job.on_end = [=](Outcome outcome) { h->promise.set_value(std::move(outcome)); };
    scheduler.submit(std::move(job));
    return heard;
  }
  static Generation alone(const Request& request) { return Session(engine()).generate(request); }

 private:
  static Engine* engine_;
};
Engine* SchedulerTest::engine_ = nullptr;

TEST_F(SchedulerTest, AnswersInABatchAreThoseOfASession) {
  std::vector<Request> requests;
  for (const int64_t n : {1, 17, 127, 128, 129, 300, 700, 1100})
    requests.push_back(request(n, uint64_t(n)));
  requests[0].tokens = {0};
  std::vector<Generation> expected;
  for (const Request& r : requests) expected.push_back(alone(r));

  Scheduler scheduler(engine(), options());
  std::vector<std::unique_ptr<Heard>> heard;
  for (const Request& r : requests) heard.push_back(submit(scheduler, r));
  for (size_t i = 0; i < heard.size(); ++i) {
    const Outcome outcome = heard[i]->future.get();
    EXPECT_FALSE(outcome.error);
    EXPECT_EQ(outcome.generation.tokens, expected[i].tokens) << i;
    EXPECT_EQ(heard[i]->text, expected[i].text);
    EXPECT_EQ(outcome.generation.kv.compressed, expected[i].kv.compressed);
    EXPECT_EQ(outcome.generation.kv.bytes, expected[i].kv.bytes);
    EXPECT_DOUBLE_EQ(outcome.generation.sparsity.density, expected[i].sparsity.density);
  }
}

TEST_F(SchedulerTest, APrefixReadBeforeChangesNothingButTheTime) {
  Request first = request(900);
  Request longer = first;
  longer.tokens.resize(first.tokens.size() - 20);  // another end than that of the first
  const Request other = request(300, 7);
  longer.tokens.insert(longer.tokens.end(), other.tokens.begin() + 1, other.tokens.end());
  const Generation expected = alone(longer);

  Scheduler scheduler(engine(), options());
  submit(scheduler, first)->future.wait();
  const Outcome outcome = submit(scheduler, longer)->future.get();
  // All before the dense tail of the first prompt: its last segment is short, and takes the one
  // before along.
  ASSERT_LT(first.tokens.size() % kSegment, 64u);
  EXPECT_EQ(outcome.generation.cached_tokens,
            (int64_t(first.tokens.size()) / kSegment - 1) * kSegment);
  EXPECT_EQ(outcome.generation.tokens, expected.tokens);
  EXPECT_EQ(outcome.generation.sparsity.rigid_heads, expected.sparsity.rigid_heads);
  EXPECT_TRUE(outcome.generation.kv.compressed);

  // The compressed caches were private: what is shared is still whole.
  const Outcome again = submit(scheduler, longer)->future.get();
  EXPECT_GT(again.generation.cached_tokens, outcome.generation.cached_tokens);
  EXPECT_EQ(again.generation.tokens, expected.tokens);
  EXPECT_GT(scheduler.stats().prefix_hits, 0);

  // But for those who want all of it read, though another reads it at the same time.
  SequenceOptions measured;
  measured.reuse = false;
  const auto one = submit(scheduler, longer, {}, measured);
  const auto two = submit(scheduler, longer, {}, measured);
  for (Heard* heard : {one.get(), two.get()}) {
    const Generation got = heard->future.get().generation;
    EXPECT_EQ(got.cached_tokens, 0);
    EXPECT_EQ(got.tokens, expected.tokens);
  }
}

TEST_F(SchedulerTest, SaysWhyAPrefixWasLost) {
  Scheduler scheduler(engine(), options());
  Request r = request(900);
  EXPECT_EQ(submit(scheduler, r)->future.get().lost_prefix, "nothing is cached yet");
  Request changed = r;
  changed.tokens[200] ^= 1;
  EXPECT_EQ(submit(scheduler, changed)->future.get().lost_prefix,
            "the text differs from token 200 on");
  Request dense = r;
  dense.prefill.threshold_len = PrefillPolicy::dense().threshold_len;
  EXPECT_EQ(submit(scheduler, dense)->future.get().lost_prefix, "it was read under another policy");
}

TEST_F(SchedulerTest, ForgetsTheLeastRecentlyUsedWithinItsBytes) {
  SchedulerOptions small = options();
  small.prefix_bytes = 3 << 20;  // about a dozen segments of this model
  Scheduler scheduler(engine(), small);
  const Request a = request(700, 1), b = request(1100, 2), c = request(1100, 3);
  for (const Request& r : {a, b, c}) submit(scheduler, r)->future.wait();
  const Outcome lost = submit(scheduler, a)->future.get();
  EXPECT_EQ(lost.generation.cached_tokens, 0);
  EXPECT_EQ(lost.lost_prefix, "evicted from token 0 on");
  EXPECT_EQ(lost.generation.tokens, alone(a).tokens);
  EXPECT_LE(scheduler.stats().prefix_bytes, small.prefix_bytes);
}

TEST_F(SchedulerTest, ALongPromptNeverStopsAnAnswerForMoreThanASegment) {
  SchedulerOptions options = SchedulerTest::options();
  options.step_interval = std::chrono::hours(1);  // no step but after a chunk
  Scheduler scheduler(engine(), options);
  std::vector<std::string> log;
  Request stream = request(20);
  stream.max_tokens = 60;
  std::unique_ptr<Heard> reader;
  const auto writer = submit(
      scheduler, stream,
      [&](const Delta&) {
        if (!reader) reader = submit(scheduler, request(2000, 5), {}, {}, &log, "long");
      },
      {}, &log, "short");
  writer->future.wait();
  reader->future.wait();
  int64_t last_read = 0;
  size_t reads = 0;
  for (size_t i = 0; i < log.size() && log[i] != "long token"; ++i) {
    if (!log[i].starts_with("long read ")) continue;
    const int64_t done = std::stoll(log[i].substr(10));
    EXPECT_LE(done - last_read, kSegment);
    last_read = done;
    if (i + 1 < log.size() && done < 2000 - kSegment) {
      EXPECT_EQ(log[i + 1], "short token") << i;
    }
    ++reads;
  }
  EXPECT_GE(reads, 10u);
}

TEST_F(SchedulerTest, AnswersGoOnBetweenTheLayersOfAChunk) {
  SchedulerOptions eager = options();
  eager.step_interval = {};
  Scheduler scheduler(engine(), eager);
  std::vector<std::string> log;
  Request stream = request(20);
  stream.max_tokens = 300;
  const Request prompt = request(2000, 5);
  std::unique_ptr<Heard> reader;
  const auto writer = submit(
      scheduler, stream,
      [&](const Delta&) {
        if (!reader) reader = submit(scheduler, prompt, {}, {}, &log, "long");
      },
      {}, &log, "short");
  EXPECT_EQ(writer->future.get().generation.tokens, alone(stream).tokens);
  EXPECT_EQ(reader->future.get().generation.tokens, alone(prompt).tokens);
  const auto end = std::ranges::find(log, "long token");
  const auto n_tokens = std::count(log.begin(), end, "short token");
  const auto n_chunks = (end - log.begin()) - n_tokens;
  EXPECT_GE(n_chunks, 10);
  EXPECT_GT(n_tokens, n_chunks + 2) << "the one that asked, and one for each chunk";
}

TEST_F(SchedulerTest, PromptsTakeTurns) {
  Scheduler scheduler(engine(), options());
  std::vector<std::string> log;
  std::unique_ptr<Heard> quick;
  Request slow = request(3000, 5);
  slow.max_tokens = 1;
  auto heard = std::make_unique<Heard>();
  Job job;
  job.request = slow;
  std::promise<void> ended;
  job.on_prefill = [&](int64_t done, int64_t, int64_t, double) {
    log.push_back("slow " + std::to_string(done));
    if (!quick) quick = submit(scheduler, request(60), {}, {}, &log, "quick");
  };
  job.on_end = [&](const Outcome&) { ended.set_value(); };
  scheduler.submit(std::move(job));
  ended.get_future().wait();
  quick->future.wait();
  // Read after at most one more chunk of the long prompt.
  const auto at =
      std::ranges::find_if(
          log, [](const std::string& event) { return event.starts_with("quick read"); }) -
      log.begin();
  EXPECT_LE(at, 2) << testing::PrintToString(log);
}

TEST_F(SchedulerTest, ACancelledAnswerEndsBetweenTheLayersOfAChunk) {
  SchedulerOptions eager = options();
  eager.step_interval = {};
  eager.prefill.segment = 4 * kSegment;  // longer layers, more steps in a chunk
  Scheduler scheduler(engine(), eager);
  std::vector<std::string> log;
  Request endless = request(200, 4), stream = request(20), prompt = request(2000, 5);
  for (Request* r : {&endless, &stream, &prompt}) r->prefill = eager.prefill;
  endless.max_tokens = 100000;
  stream.max_tokens = 300;
  const auto cancelled = submit(scheduler, endless, {}, {}, &log, "cancelled");
  std::unique_ptr<Heard> reader;
  const auto writer = submit(
      scheduler, stream,
      [&](const Delta&) {
        if (!reader && std::ranges::count(log, "cancelled token") > 0)
          reader = submit(scheduler, prompt, {}, {}, &log, "long");
        // Another token since the last chunk: this is a step between two layers.
        const auto chunk = std::find_if(log.rbegin(), log.rend(), [](const std::string& entry) {
          return entry.starts_with("long read ");
        });
        if (chunk != log.rend() && std::count(log.rbegin(), chunk, "short token") == 2 &&
            cancelled->cancel.request_stop())
          log.push_back("cancel");
      },
      {}, &log, "short");
  EXPECT_EQ(cancelled->future.get().generation.finish_reason, FinishReason::kCancelled);
  writer->future.wait();
  reader->future.wait();
  const auto since = std::ranges::find(log, "cancel");
  ASSERT_NE(since, log.end());
  EXPECT_LE(std::count(since, log.end(), "cancelled token"), 1) << "of the same step";
}

TEST_F(SchedulerTest, CancellingOneLeavesTheOthersAlone) {
  Scheduler scheduler(engine(), options());
  const Request kept = request(300, 3);
  Request long_answer = request(200, 4);
  long_answer.max_tokens = 100000;
  Heard* to_cancel = nullptr;
  std::vector<std::unique_ptr<Heard>> heard;
  heard.push_back(submit(scheduler, long_answer));
  to_cancel = heard[0].get();
  heard.push_back(submit(scheduler, kept, [&](const Delta&) { to_cancel->cancel.request_stop(); }));
  EXPECT_EQ(heard[0]->future.get().generation.finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(heard[1]->future.get().generation.tokens, alone(kept).tokens);
  EXPECT_TRUE(scheduler.wait_idle(std::chrono::steady_clock::now() + std::chrono::seconds(60)));
  EXPECT_EQ(scheduler.stats().kv_bytes_planned, 0);
}

TEST_F(SchedulerTest, ADeadlineEndsARequest) {
  Scheduler scheduler(engine(), options());
  Job job;
  job.request = request(100);
  job.request.max_tokens = 100000;
  job.deadline = std::chrono::steady_clock::now();
  std::promise<Outcome> outcome;
  job.on_end = [&](Outcome o) { outcome.set_value(std::move(o)); };
  scheduler.submit(std::move(job));
  EXPECT_EQ(outcome.get_future().get().generation.finish_reason, FinishReason::kCancelled);
}

Refusal::Kind refused(const std::function<void()>& f) {
  try {
    f();
  } catch (const Refusal& refusal) {
    return refusal.kind;
  }
  ADD_FAILURE() << "was taken";
  return {};
}

TEST_F(SchedulerTest, RefusesAtOnceWhatCanNeverFit) {
  SchedulerOptions tight = options();
  tight.kv_bytes = 8 << 20;
  Scheduler scheduler(engine(), tight);
  Request large = request(860);
  large.decode = DecodePolicy::full();
  large.max_tokens = 5000;
  EXPECT_EQ(refused([&] { submit(scheduler, large); }), Refusal::Kind::kTooLarge);
  Request too_long = request(10);
  too_long.tokens.assign(131072, 5);
  EXPECT_EQ(refused([&] { submit(scheduler, too_long); }), Refusal::Kind::kTooLong);
  Request wrong = request(10);
  wrong.tokens[3] = 4096;
  EXPECT_THROW(submit(scheduler, wrong), Error);
  // What fits an empty server waits for its turn, and all are answered.
  large.max_tokens = 40;
  std::vector<std::unique_ptr<Heard>> heard;
  for (int i = 0; i < 3; ++i) heard.push_back(submit(scheduler, large));
  EXPECT_LE(scheduler.stats().kv_bytes_planned, tight.kv_bytes);
  for (const auto& h : heard) EXPECT_FALSE(h->future.get().error);
}

TEST_F(SchedulerTest, SaysWhenItIsBusy) {
  SchedulerOptions one = options();
  one.max_sequences = 1;
  one.max_waiting = 1;
  Scheduler scheduler(engine(), one);
  Request endless = request(20);
  endless.max_tokens = 100000;
  std::promise<void> started;
  bool first = true;
  const auto a = submit(scheduler, endless, [&](const Delta&) {
    if (std::exchange(first, false)) started.set_value();
  });
  started.get_future().wait();
  const auto b = submit(scheduler, request(20));
  try {
    submit(scheduler, request(20));
    ADD_FAILURE();
  } catch (const Refusal& refusal) {
    EXPECT_EQ(refusal.kind, Refusal::Kind::kBusy);
    EXPECT_GE(refusal.retry_after_s, 1);
  }
  // One that waits can be cancelled, too.
  b->cancel.request_stop();
  EXPECT_EQ(b->future.get().generation.finish_reason, FinishReason::kCancelled);
  a->cancel.request_stop();
  EXPECT_EQ(a->future.get().generation.finish_reason, FinishReason::kCancelled);
}

TEST_F(SchedulerTest, DrainsWhatItHasTaken) {
  Scheduler scheduler(engine(), options());
  const auto a = submit(scheduler, request(300));
  scheduler.drain();
  EXPECT_EQ(refused([&] { submit(scheduler, request(20)); }), Refusal::Kind::kDraining);
  EXPECT_EQ(a->future.get().generation.tokens.size(), 32u);
}

TEST_F(SchedulerTest, ReportsTokensAsASessionScoresThem) {
  Request r = request(200);
  r.prefill.threshold_len = PrefillPolicy::dense().threshold_len;
  r.decode = DecodePolicy::full();
  r.max_tokens = 8;
  // A product of many rows and one of few round activations alike, were it by a unit for them.
  Engine floats(test::kNeedle,
                {.device = Device::kCpu, .threads = 1, .math = Math::kF32, .page = kSegment});
  Scheduler scheduler(floats, options());
  const auto heard = submit(scheduler, r, {}, {.top_logprobs = 3, .score_prompt = true});
  const Outcome outcome = heard->future.get();
  ASSERT_FALSE(outcome.error) << *outcome.error;
  std::vector<int32_t> all = r.tokens;
  all.insert(all.end(), outcome.generation.tokens.begin(), outcome.generation.tokens.end());
  ASSERT_EQ(heard->prompt_reports.size() + 1, r.tokens.size());
  ASSERT_EQ(heard->reports.size(), 8u);
  std::vector<TokenReport> reports = heard->prompt_reports;
  reports.insert(reports.end(), heard->reports.begin(), heard->reports.end());

  const std::vector<TokenScore> scores = Session(floats).score(all, r, int64_t(r.tokens.size()));
  for (size_t i = 0; i < reports.size(); ++i) {
    const TokenReport& report = reports[i];
    EXPECT_EQ(report.chosen.token, all[i + 1]);
    // Both are log-sum-exps of the same logits, in float and in double: 1e-4.
    EXPECT_NEAR(report.chosen.logprob, scores[i + 1].logprob, 1e-4) << i;
    ASSERT_EQ(report.top.size(), 3u);
    EXPECT_EQ(report.top[0].token, scores[i + 1].argmax);
    EXPECT_GE(report.top[0].logprob, report.top[1].logprob);
    EXPECT_GE(report.top[1].logprob, report.top[2].logprob);
  }
}

TEST_F(SchedulerTest, BiasAndLeastLengthAreObeyed) {
  Request r = request(60);
  r.ignore_eos = false;
  const Generation plain = alone(r);
  Scheduler scheduler(engine(), options());
  const Generation without =
      submit(scheduler, r, {}, {.logit_bias = {{plain.tokens[0], -INFINITY}}})
          ->future.get()
          .generation;
  EXPECT_THAT(without.tokens, testing::Not(testing::Contains(plain.tokens[0])));
  const Generation stopped =
      submit(scheduler, r, {}, {.stop_tokens = {plain.tokens[2]}})->future.get().generation;
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_LE(stopped.tokens.size(), 3u);
  const Generation longer =
      submit(scheduler, r, {}, {.stop_tokens = {plain.tokens[2]}, .min_tokens = 10})
          ->future.get()
          .generation;
  EXPECT_GE(longer.tokens.size(), 10u);
}

}  // namespace
}  // namespace ei
