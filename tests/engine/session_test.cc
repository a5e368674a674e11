#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "apps/eval/document.h"
#include "ei/cpu/targets.h"
#include "ei/engine/engine.h"
#include "tests/support/files.h"

namespace ei {
namespace {

class SessionTest : public testing::Test {
 protected:
  // On a processor, whose products of one row and of many round alike enough for equal texts.
  static void SetUpTestSuite() { engine_ = new Engine(test::kNeedle, {.device = Device::kCpu}); }
  static void TearDownTestSuite() { delete engine_; }
  static Engine& engine() { return *engine_; }

  static eval::Document document(int64_t n_tokens, uint64_t seed = 1) {
    return eval::make_document(
        {.n_tokens = n_tokens, .n_needles = 4, .seed = seed},
        [&](std::string_view text) { return int64_t(engine().tokenize(text).size()); });
  }
  // Sparse from the second segment on: the default budget covers all of these documents.
  static PrefillPolicy sparse_prefill(float base_budget) {
    PrefillPolicy policy;
    policy.budget.base = base_budget;
    policy.threshold_len = policy.segment;
    return policy;
  }
  static Request dense() {
    Request request;
    request.prefill = PrefillPolicy::dense();
    request.decode = DecodePolicy::full();
    request.max_tokens = 24;
    return request;
  }

 private:
  static Engine* engine_;
};
Engine* SessionTest::engine_ = nullptr;

TEST_F(SessionTest, StreamsTheTextItReturns) {
  Request request = dense();
  request.tokens = engine().tokenize("Once upon a time there was a");
  std::string streamed;
  const Generation got = Session(engine()).generate(
      request, {.on_text = [&](std::string_view text) { streamed += text; }, .on_prefill = {}});
  EXPECT_EQ(streamed, got.text);
  EXPECT_FALSE(got.text.empty());
  EXPECT_EQ(got.finish_reason, FinishReason::kLength);
  EXPECT_EQ(got.tokens.size(), 24u);
  EXPECT_GT(got.timings.prefill_ms, 0);
}

// A prompt read once under each prefill policy, and compressed in several ways from there.
TEST_F(SessionTest, KeepsWhatItReadForOtherDecodePolicies) {
  const eval::Document text = document(1500);
  Engine engine(test::kNeedle, {.threads = 1, .chunk = 512});
  Session session(engine, int64_t{1} << 30);
  const PrefillPolicy sparse = sparse_prefill(64);
  for (const PrefillPolicy& prefill : {PrefillPolicy::dense(), sparse}) {
    bool first = true;
    for (const DecodePolicy& decode :
         {DecodePolicy::adakv(), DecodePolicy::full(), DecodePolicy::streaming()}) {
      Request request = dense();
      request.messages = {{"user", {text.text, text.needles[1].question()}}};
      request.prefill = prefill;
      request.decode = decode;
      const Generation got = session.generate(request);
      const Generation fresh = Session(engine).generate(request);
      EXPECT_EQ(got.text, fresh.text);
      EXPECT_EQ(got.kv.bytes, fresh.kv.bytes);
      EXPECT_EQ(got.kv.entry_bytes, fresh.kv.entry_bytes);
      EXPECT_LE(got.kv.entry_bytes, got.kv.bytes);
      const auto n_written = int64_t(got.tokens.size()) - 1;  // the last is not read any more
      constexpr int64_t kRowBytes = 8 * 2 * 2 * 64 * 2;  // layers, heads, K and V, values, bf16
      EXPECT_EQ(got.kv.entry_bytes_full, (got.prompt_tokens + n_written) * kRowBytes);
      if (decode.split == Split::kStreaming) {
        EXPECT_EQ(got.kv.entry_bytes, (decode.budget + n_written) * kRowBytes);
      }
      if (first) {
        EXPECT_EQ(got.cached_tokens, 0);
        EXPECT_EQ(got.sparsity.density < 1, prefill == sparse);
      } else {
        EXPECT_GE(got.cached_tokens, got.prompt_tokens - 1024);
      }
      first = false;
    }
  }
}

TEST_F(SessionTest, ReportsProgressAndStopsAtChunkBorders) {
  Engine engine(test::kNeedle, {.chunk = 512});
  Request request = dense();
  request.tokens = engine.tokenize(document(1500).text);
  const auto n = int64_t(request.tokens.size());
  std::vector<int64_t> done;
  std::stop_source stop;
  const Generation got =
      Session(engine).generate(request,
                               {.on_text = {},
                                .on_prefill =
                                    [&](int64_t read, int64_t total, int64_t cached) {
                                      EXPECT_EQ(total, n);
                                      EXPECT_EQ(cached, 0);
                                      done.push_back(read);
                                      if (read > 1000) stop.request_stop();
                                    }},
                               stop.get_token());
  EXPECT_EQ(done, (std::vector<int64_t>{512, 1024}));
  EXPECT_EQ(got.finish_reason, FinishReason::kCancelled);
  EXPECT_TRUE(got.text.empty());
}

TEST_F(SessionTest, GoesOnAfterACancelledPrompt) {
  Engine engine(test::kNeedle, {.chunk = 512});
  Request request = dense();
  request.tokens = engine.tokenize(document(1500).text);
  const std::string want = Session(engine).generate(request).text;
  Session session(engine);
  std::stop_source stop;
  session.generate(request, {.on_text = {}, .on_prefill = [&](auto...) { stop.request_stop(); }},
                   stop.get_token());
  const Generation got = session.generate(request);
  EXPECT_EQ(got.cached_tokens, 512);
  EXPECT_EQ(got.text, want);
}

TEST_F(SessionTest, CancelsFromAnotherThreadWhileDecoding) {
  Request request = dense();
  request.tokens = engine().tokenize("It was a dark night, and");
  request.max_tokens = 100000;
  request.ignore_eos = true;
  std::stop_source stop;
  std::atomic<int> n_pieces = 0;
  std::jthread canceller([&] {
    while (n_pieces < 5) std::this_thread::yield();
    stop.request_stop();
  });
  const Generation got = Session(engine()).generate(
      request, {.on_text = [&](std::string_view) { ++n_pieces; }, .on_prefill = {}},
      stop.get_token());
  EXPECT_EQ(got.finish_reason, FinishReason::kCancelled);
  EXPECT_GE(got.tokens.size(), 5u);
}

// Two engines may run at once; sessions of one take turns.
TEST_F(SessionTest, SessionsOfOneEngineTakeTurns) {
  Request request = dense();
  request.tokens = engine().tokenize("The old house by the river");
  const std::string want = Session(engine()).generate(request).text;
  std::vector<std::string> got(3);
  {
    std::vector<std::jthread> threads;
    for (std::string& text : got)
      threads.emplace_back([&] { text = Session(engine()).generate(request).text; });
  }
  for (const std::string& text : got) EXPECT_EQ(text, want);
}

TEST_F(SessionTest, StopsAtAStopString) {
  Request request = dense();
  request.tokens = engine().tokenize("Once upon a time there was a");
  request.max_tokens = 40;
  const std::string full = Session(engine()).generate(request).text;
  // From the middle of one word to the middle of a later one: across token borders.
  request.stop = {full.substr(full.size() / 2, 9)};
  const Generation got = Session(engine()).generate(request);
  EXPECT_EQ(got.text, full.substr(0, full.find(request.stop[0])));
  EXPECT_EQ(got.finish_reason, FinishReason::kStop);
}

TEST_F(SessionTest, SeedsDecideSamples) {
  Request request = dense();
  request.tokens = engine().tokenize("Once upon a time there was a");
  request.sampling = SamplingParams{.temperature = 1, .top_k = 50, .top_p = 0.95f, .seed = 7};
  const std::string a = Session(engine()).generate(request).text;
  EXPECT_EQ(Session(engine()).generate(request).text, a);
  request.sampling->seed = 8;
  EXPECT_NE(Session(engine()).generate(request).text, a);
}

// The second turn of a conversation reads only what is new, and answers as if all were new.
TEST_F(SessionTest, SecondTurnIsTheConversationReadAtOnce) {
  const eval::Document text = document(3000, 4);
  for (const bool is_dense : {true, false}) {
    Request request = dense();
    if (!is_dense) request.prefill = sparse_prefill(1024);
    request.messages = {{"user", {text.text, text.needles[0].question()}}};
    request.max_tokens = 40;
    Session session(engine());
    const Generation first = session.generate(request);
    EXPECT_EQ(first.sparsity.density < 1, !is_dense);
    EXPECT_NE(first.text.find(text.needles[0].value), std::string::npos) << first.text;
    request.messages.push_back({"assistant", {first.text}});
    request.messages.push_back({"user", {text.needles[2].question()}});
    const Generation second = session.generate(request);
    const Generation at_once = Session(engine()).generate(request);
    EXPECT_GE(second.cached_tokens, 2048) << is_dense;
    EXPECT_EQ(at_once.cached_tokens, 0);
    EXPECT_EQ(second.text, at_once.text) << is_dense;
    EXPECT_NE(second.text.find(text.needles[2].value), std::string::npos) << second.text;
  }
}

// Beside a cache that is compressed, all of the conversation is kept: each turn reads what is new.
TEST_F(SessionTest, AnswersJoinThePrefix) {
  const eval::Document text = document(1500, 6);
  const test::TempDir dir;
  for (const bool is_dense : {false, true}) {
    Request request;
    if (is_dense) request.prefill = PrefillPolicy::dense();
    if (!is_dense) request.prefill = PrefillPolicy::sketch();
    request.decode.budget = 192;
    request.decode.gap = 2;
    request.max_tokens = 60;
    Session session(engine(), int64_t{1} << 30);
    std::string last;
    int64_t n_known = 0;
    for (size_t turn = 0; turn < 3; ++turn) {
      std::vector<std::string> parts = {text.needles[turn % 4].question()};
      if (turn == 0) parts.insert(parts.begin(), text.text);
      request.messages.push_back({"user", parts});
      if (turn == 2) {  // from a file, as from the session itself
        session.save(dir / "s", request.prefill, "a note");
        Session other(engine(), int64_t{1} << 30);
        EXPECT_EQ(other.load(dir / "s", request.prefill), "a note");
        other.save(dir / "t", request.prefill, "a note");
        EXPECT_EQ(ei::read_file(dir / "s"), ei::read_file(dir / "t"));
        last = other.generate(request).text;
      }
      const Generation got = session.generate(request);
      EXPECT_TRUE(got.kv.compressed);
      // But for less than a segment, the last token, which was never read, and what of the answer
      // the tokenizer writes otherwise.
      EXPECT_GE(got.cached_tokens, n_known - 64) << turn;
      EXPECT_LE(got.cached_tokens, n_known) << turn;
      n_known = got.prompt_tokens + std::ssize(got.tokens);
      request.messages.push_back({"assistant", {got.text}});
      if (turn == 2) {
        EXPECT_EQ(got.text, last);
      }
    }
    // Another question to the same text is read as if nobody had asked before.
    Request other = request;
    other.messages = {{"user", {text.text, "What is missing here, and why is that so?"}}};
    const Generation got = session.generate(other);
    EXPECT_GE(got.cached_tokens, is_dense ? 1024 : 512);
    EXPECT_EQ(got.text, Session(engine()).generate(other).text);
  }
}

TEST_F(SessionTest, RefusesWhatWasSavedOfSomethingElse) {
  const test::TempDir dir;
  Request request = dense();
  request.tokens = engine().tokenize(document(700).text);
  Session session(engine(), int64_t{1} << 30);
  session.generate(request);
  session.save(dir / "s", request.prefill, "");
  const auto error = [&](Session& to, const PrefillPolicy& policy) {
    return test::error_of([&] { to.load(dir / "s", policy); });
  };
  using testing::HasSubstr;
  EXPECT_THAT(error(session, PrefillPolicy::sketch()),
              AllOf(HasSubstr("policy.estimate"), HasSubstr("--prefill")));
  Engine floats(test::kNeedle, {.device = Device::kCpu, .kv_type = DType::kF32});
  Session other(floats, int64_t{1} << 30);
  EXPECT_THAT(
      error(other, request.prefill),
      AllOf(HasSubstr(R"(model.kv_type" is "bf16", expected "f32")"), HasSubstr("--kv-type")));
  // Damaged or cut anywhere, it is refused, and the session goes on.
  const std::string bytes = ei::read_file(dir / "s");
  for (size_t i = 0; i < bytes.size(); i += i < 2000 ? 37 : 99991) {
    std::string damaged = bytes;
    damaged[i] = char(damaged[i] ^ 4);
    test::write_file(dir / "s", damaged);
    EXPECT_NE(error(session, request.prefill), "") << i;
    test::write_file(dir / "s", bytes.substr(0, i));
    if (i > 0) {
      EXPECT_NE(error(session, request.prefill), "") << i;
    }
  }
  EXPECT_EQ(session.generate(request).tokens.size(), 24u);
}

TEST_F(SessionTest, ACompressedConversationIsReadAgain) {
  const eval::Document text = document(2300, 5);
  Request request;
  request.messages = {{"user", {text.text, text.needles[1].question()}}};
  request.max_tokens = 40;
  Session session(engine());
  const Generation first = session.generate(request);
  EXPECT_TRUE(first.kv.compressed);
  EXPECT_EQ(session.generate(request).text, first.text);
}

// Scores are those of generating: the likeliest token after a prefix is the greedy one.
TEST_F(SessionTest, ScoresAgreeWithGreedyText) {
  Request request = dense();
  request.tokens = engine().tokenize(document(700).text);
  const auto n_prompt = int64_t(request.tokens.size());
  const Generation got = Session(engine()).generate(request);
  std::vector<int32_t> all = request.tokens;
  all.insert(all.end(), got.tokens.begin(), got.tokens.end());
  Session session(engine());
  const auto prefilled = session.score(all, dense());
  int64_t n_steps = 0;  // of the prompt's chunk and every token but the last, which none follows
  const auto decoded = session.score(all, dense(), n_prompt, {.on_step = [&] { ++n_steps; }});
  EXPECT_EQ(n_steps, std::ssize(got.tokens));
  ASSERT_EQ(prefilled.size(), all.size());
  ASSERT_EQ(decoded.size(), all.size());
  for (size_t i = size_t(n_prompt); i < all.size(); ++i) {
    EXPECT_EQ(decoded[i].argmax, all[i]) << i;
    // bf16 keys are the same. Only the order of float sums differs, by up to 1e-3, or where there
    // is a unit for it what is read, keys and values among it, comes of products in bf16: of
    // these tokens' by up to .08 then.
    EXPECT_NEAR(prefilled[i].logprob, decoded[i].logprob,
                cpu::tiles() == cpu::Tiles::kNone ? 3e-3 : .15)
        << i;
    EXPECT_LE(decoded[i].logprob, 0);
  }
}

TEST_F(SessionTest, RefusesWhatCannotRun) {
  Session session(engine());
  Request request = dense();
  EXPECT_THROW(session.generate(request), Error);  // no prompt
  request.tokens.assign(131072, 5);
  try {
    session.generate(request);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("131072"), std::string::npos) << error.what();
  }
  request.tokens = {1, 2, 4096};
  EXPECT_THROW(session.generate(request), Error);  // no such token
  request = dense();
  request.tokens = {1, 2, 3};
  request.decode.budget = 32;
  request.decode.window = 32;
  EXPECT_THROW(session.generate(request), Error);
  request.decode = DecodePolicy::full();
  request.prefill.block = 24;
  EXPECT_THROW(session.generate(request), Error);
  request.prefill = PrefillPolicy::dense();
  EXPECT_EQ(session.generate(request).tokens.size(), 24u);  // the session still works
}

TEST(EngineTest, NamesWhatIsMissing) {
  for (const std::string& path : {std::string("/nonexistent"), test::kNeedle + "/config.json"}) {
    try {
      Engine engine{std::filesystem::path(path)};
      FAIL();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace ei
