#include "ei/engine/memory_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ei/decode/compress.h"
#include "ei/decode/decode.h"
#include "ei/engine/context.h"
#include "ei/engine/make_backend.h"
#include "ei/engine/votes.h"
#include "tests/support/files.h"
#include "tests/support/probed_backend.h"

namespace ei {
namespace {

constexpr int64_t kPlanSegment = 64;

ModelConfig small_config() {
  ModelConfig config;
  config.hidden = 64;
  config.intermediate = 96;
  config.n_layers = 4;
  config.n_heads = 4;
  config.n_kv_heads = 2;
  config.head_dim = 32;
  config.vocab_size = 97;
  config.max_positions = 4096;
  return config;
}

// The most that is allocated while a prompt is read and an answer is written.
struct Peak {
  int64_t pages = 0, total = 0;
};

Peak measure(Engine::Impl& engine, test::ProbedBackend& backend, const PrefillPolicy& prefill,
             const DecodePolicy& decode, int64_t n_prompt, int64_t n_total) {
  PagePool pool(backend, engine.kv_shape(prefill, n_total).layout.bytes());
  pool.take();  // a slab that holds all of these caches: pages are counted one by one
  const int64_t before = backend.allocated_bytes;
  Peak peak;
  const auto look = [&] {
    peak.pages = std::max(peak.pages, pool.bytes_in_use());
    peak.total = std::max(peak.total, backend.allocated_bytes - before + pool.bytes_in_use());
  };
  backend.on_call = look;
  {
    Context context(engine, pool, nullptr, n_total);
    std::vector<int32_t> prompt;
    for (int64_t i = 0; i < n_prompt; ++i) prompt.push_back(int32_t(i * i % 97));
    context.begin(prompt, prefill, decode, Hidden::kLast);
    Activations act(backend, engine.model->config(), context.chunk_rows(), 1);
    while (context.n_read() < n_prompt) {
      context.next_chunk(act, INT64_MAX).read();
      context.end_chunk();
    }
    Compressor compressor(decode, n_prompt);
    Decoder decoder(backend, *engine.model, 1);
    while (context.n_read() < n_total) {
      if (compressor.due(context.cache()))
        compressor.run(backend, context.cache(), context.window(), engine.model->config().n_heads,
                       make_votes(engine, prefill, decode, context));
      const Running running = {&context.cache(), &context.window(), 7};
      decoder.step(act, {&running, 1});
      context.cache().advance(1);
    }
  }
  backend.on_call = {};
  EXPECT_EQ(backend.allocated_bytes, before);
  return peak;
}

class MemoryPlanTest : public testing::Test {
 protected:
  MemoryPlanTest() {
    engine.backend = std::make_unique<test::ProbedBackend>(std::move(engine.backend));
    engine.model = std::make_unique<Model>(Model::random(backend(), small_config(), 1));
  }
  test::ProbedBackend& backend() { return static_cast<test::ProbedBackend&>(*engine.backend); }

  Engine owner = Engine::random(
      "needle-8m", {.device = Device::kCpu, .threads = 2, .page = kPlanSegment, .chunk = 192});
  Engine::Impl& engine = owner.impl();
};

TEST_F(MemoryPlanTest, IsWhatIsAllocated) {
  const auto small = [](PrefillPolicy policy) {
    policy.segment = kPlanSegment;
    policy.budget.base = 128;
    if (!policy.is_dense()) policy.threshold_len = kPlanSegment;
    return policy;
  };
  const auto few = [](DecodePolicy policy) {
    policy.budget = 160;
    if (policy.regrow > 0) policy.regrow = 96;
    return policy;
  };
  DecodePolicy wide = few({});
  wide.scope = KvScope::kQueryHead;
  struct Case {
    const char* name;
    PrefillPolicy prefill;
    DecodePolicy decode;
    double slack;  // of the plan that may not be needed
  };
  // Splits between heads are not known before: a page for each of them may be too much.
  for (const Case& c :
       {Case{"full", small({}), DecodePolicy::full(), 0.01},
        {"dense, full", small(PrefillPolicy::dense()), DecodePolicy::full(), 0.01},
        {"latent", small({}), few({}), 0.05},
        {"dense, latent", small(PrefillPolicy::dense()), few({}), 0.05},
        {"criti, snapkv", small(PrefillPolicy::criti()), few(DecodePolicy::snapkv()), 0.05},
        {"reference", small(PrefillPolicy::reference()), few(DecodePolicy::reference()), 0.15},
        {"per query head", small({}), wide, 0.15},
        {"adakv", small({}), few(DecodePolicy::adakv()), 0.3},
        {"pyramidkv", small({}), few(DecodePolicy::pyramidkv()), 0.3},
        {"streaming", small({}), few(DecodePolicy::streaming()), 0.05},
        {"expected", small({}), few(DecodePolicy::expected()), 0.2},
        {"kvzip", small({}), few(DecodePolicy::kvzip()), 0.5},
        {"kvzip-plus", small({}), few(DecodePolicy::kvzip_plus()), 0.5}})
    for (const auto& [n_prompt, n_answer] : {std::pair<int64_t, int64_t>{40, 9},
                                             {130, 200},  // no longer than the budget
                                             {900, 10},   // too short for a gap
                                             {1600, 300}}) {
      SCOPED_TRACE(testing::Message() << c.name << ", " << n_prompt << " + " << n_answer);
      const int64_t n_total = n_prompt + n_answer;
      const KvShape shape = engine.kv_shape(c.prefill, n_total);
      const MemoryPlan plan =
          plan_memory(engine, c.prefill, c.decode, shape, shape.layout.bytes(), n_prompt, n_total);
      const Peak peak = measure(engine, backend(), c.prefill, c.decode, n_prompt, n_total);
      EXPECT_LE(peak.pages, plan.pages);
      EXPECT_LE(peak.total, plan.total());
      EXPECT_GE(double(peak.total), (1 - c.slack) * double(plan.total()))
          << plan.pages << " of pages, " << plan.tables << " of tables, " << plan.profile
          << " of profile, " << plan.window << " of window, " << plan.compression
          << " of compression, " << plan.activations << " of activations; pages took "
          << peak.pages;
    }
}

// What is said to fit is read, one token more is refused with that number.
TEST_F(MemoryPlanTest, LongestPromptIsWhatFits) {
  backend().memory = 3 << 20;
  const int64_t longest = owner.info().longest_context;
  EXPECT_GT(longest, 0);
  EXPECT_LT(longest, small_config().max_positions);
  EXPECT_LE(owner.info().longest_context_bytes, backend().memory);
  const auto error = [&](int64_t n_prompt) {
    Request request;
    request.prefill = default_prefill(Device::kCpu);
    request.max_tokens = 1;
    return test::error_of([&] { Context(engine).check(n_prompt, n_prompt + 1, request); });
  };
  EXPECT_EQ(error(longest), "");
  EXPECT_THAT(error(longest + 1),
              testing::HasSubstr(fmt::format("enough for a prompt of {} tokens", longest)));
}

TEST(KvTypeTest, Q8IsRefusedOnCuda) {
  EXPECT_THAT(test::error_of(
                  [] { Engine(test::kNeedle, {.device = Device::kCuda, .kv_type = DType::kQ8}); }),
              testing::HasSubstr("q8_0 are computed on the CPU alone"));
}

TEST(KvTypeTest, Fp8IsRefusedOnTheCpu) {
  EXPECT_THAT(test::error_of(
                  [] { Engine(test::kNeedle, {.device = Device::kCpu, .kv_type = DType::kFP8}); }),
              testing::HasSubstr("fp8 are computed on GPUs alone"));
}

// Of the formats that weights can be converted to, the most exact one that fits.
TEST(WeightMemoryTest, WhatIsConvertedMustFit) {
  for (const auto& [memory, words] :
       std::vector<std::pair<int64_t, std::string>>{{15 << 20, "with --weights q8_0 they take"},
                                                    {6 << 20, "with --weights q4_k they take"},
                                                    {3 << 20, "small enough"}}) {
    test::ProbedBackend backend(make_backend({.device = Device::kCpu, .threads = 1}));
    backend.memory = memory;
    const auto load = [&](std::optional<WeightFormat> weights) {
      return Model::load(backend, test::kNeedle, weights);
    };
    // Those that stay in the mapped file need not.
    EXPECT_THAT(load({}).warnings(), testing::ElementsAre(testing::HasSubstr(words)));
    if (memory == 15 << 20) {
      EXPECT_THAT(load(WeightFormat::kQ8_0).warnings(), testing::IsEmpty());
    } else {
      EXPECT_THAT(test::error_of([&] { load(WeightFormat::kQ8_0); }), testing::HasSubstr(words));
    }
  }
}

}  // namespace
}  // namespace ei
