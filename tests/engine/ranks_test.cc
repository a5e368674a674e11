#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <future>

#include "ei/base/thread_ranks.h"
#include "ei/cpu/backend.h"
#include "ei/cuda/backend.h"
#include "ei/engine/engine_impl.h"
#include "ei/io/safetensors.h"
#include "ei/policy/named.h"
#include "tests/end_to_end/documents.h"
#include "tests/support/backend_fixture.h"
#include "tests/support/files.h"
#include "tests/support/mixed_load.h"
#include "tests/support/numbers.h"

namespace ei {
namespace {

namespace fs = std::filesystem;
using Ranks = std::shared_ptr<Communicator>;

constexpr int64_t kPrompt = 200, kText = 260, kAnswer = 40;

constexpr std::array kFamilies = {"llama2",  "llama31",   "llama32", "llama_linear", "llama_yarn",
                                  "mistral", "openpangu", "qwen25",  "qwen3"};

fs::path tiny(std::string_view name) { return fs::path(EI_SOURCE_DIR "/tests/data/tiny") / name; }

// A tiny checkpoint of 128 tokens without a tokenizer: on one thread and in floats, so that sums in
// another order are all that differs, or on a GPU.
struct TinyEngine {
  TinyEngine(const fs::path& dir, const Ranks& ranks, Device device = Device::kCpu)
      : engine(test::kNeedle, {.device = Device::kCpu,
                               .threads = 1,
                               .kv_type = device == Device::kCpu ? DType::kF32 : DType::kBF16,
                               .page = 16,
                               .chunk = 32}) {
    Engine::Impl& e = engine.impl();
    e.model.reset();
    e.backend = device == Device::kCpu ? make_cpu_backend(1, Math::kF32, ranks)
                                       : make_cuda_backend(Math::kBF16, ranks);
    e.model = std::make_unique<Model>(Model::load(*e.backend, dir));
    e.longest_token = 0;
  }
  Engine engine;
};

std::vector<int32_t> text_of(const fs::path& dir) {
  const SafetensorsFile file(dir / "expected.safetensors");
  std::vector<int32_t> tokens(kText);
  std::memcpy(tokens.data(), file.tensors().at("tokens").data.data(), kText * sizeof(int32_t));
  return tokens;
}

struct Policies {
  std::string name;
  PrefillPolicy prefill;
  DecodePolicy decode;
};

PrefillPolicy small(PrefillPolicy p) {
  p.segment = 16;
  p.block = 4;
  p.stride = 2;
  p.budget.base = 16;
  p.mass = 0.6f;
  p.sink = p.local = 4;
  if (!p.is_dense()) p.threshold_len = 16;
  p.dense_layers = 0;
  p.dense_tail = 4;
  return p;
}

// Every way of reading, with few tokens attended to, and every way of keeping a cache, with budgets
// that the text exceeds again and again.
std::vector<Policies> all_policies() {
  std::vector<Policies> all;
  for (const auto& [name, policy] : prefill_policies())
    all.push_back({std::string(name), small(policy), DecodePolicy::full()});
  const auto add = [&](std::string name, DecodePolicy p) {
    if (!p.is_full()) {
      p.budget = 48;
      p.window = p.gap == kAutoGap ? 32 : 8;  // the first leaves room for several looks
      if (p.gap > 0) p.gap = 3;
      if (p.regrow > 0) p.regrow = 16;
    }
    all.push_back({std::move(name), small(PrefillPolicy::dense()), p});
  };
  for (const auto& [name, policy] : decode_policies()) add(std::string(name), policy);
  add("reference", DecodePolicy::reference());
  DecodePolicy automatic = DecodePolicy::latent_adakv();
  automatic.gap = kAutoGap;
  add("automatic gap", automatic);
  return all;
}

struct Result {
  std::vector<float> logits;  // of every token after the first, the last kText - kPrompt decoded
  Generation answer;
};

std::vector<Result> results_of(const fs::path& dir, const Ranks& ranks,
                               Device device = Device::kCpu,
                               const std::vector<Policies>& all = all_policies()) {
  TinyEngine tiny(dir, ranks, device);
  const std::vector<int32_t> text = text_of(dir);
  std::vector<Result> results;
  for (const Policies& policies : all) {
    Request request;
    request.prefill = policies.prefill;
    request.decode = policies.decode;
    request.sampling = SamplingParams{};
    request.max_tokens = kAnswer;
    request.ignore_eos = true;
    Result& result = results.emplace_back();
    Session session(tiny.engine);
    session.score(text, request, kPrompt, {.on_logits = [&](int64_t, std::span<const float> row) {
                    result.logits.insert(result.logits.end(), row.begin(), row.end());
                  }});
    request.tokens.assign(text.begin(), text.begin() + kPrompt);
    result.answer = session.generate(request);
  }
  return results;
}

class RanksTest : public testing::TestWithParam<const char*> {};

// What n ranks compute, each of them, is what one does. Logits: sums of some hundred floats in
// another order, through a few layers; a block or row that is chosen by less than that would be an
// error far above it.
TEST_P(RanksTest, ComputeWhatOneDoes) {
  const fs::path dir = tiny(GetParam());
  const std::vector<Policies> policies = all_policies();
  const std::vector<Result> want = results_of(dir, nullptr);
  for (const int n : {2, 4}) {
    std::vector<std::vector<Result>> got(static_cast<size_t>(n));
    const std::string error = test::error_of([&] {
      ThreadRanks(n).run([&](const Ranks& ranks) {
        got[static_cast<size_t>(ranks->rank())] = results_of(dir, ranks);
      });
    });
    if (load_config(dir).n_kv_heads % n != 0) {
      EXPECT_THAT(error, testing::HasSubstr("the number of KV heads is 2, which 4 ranks cannot"));
      continue;
    }
    EXPECT_EQ(error, "");
    for (int r = 0; r < n; ++r)
      for (size_t p = 0; p < policies.size(); ++p) {
        SCOPED_TRACE(testing::Message()
                     << policies[p].name << ", rank " << r << " of " << n << " ranks");
        const Result &a = got[static_cast<size_t>(r)].at(p), &b = want[p];
        EXPECT_EQ(a.answer.tokens, b.answer.tokens);
        ASSERT_EQ(a.logits.size(), b.logits.size());
        EXPECT_LT(test::nmse(a.logits, b.logits), 1e-9);
        EXPECT_EQ(a.answer.kv.entry_bytes, b.answer.kv.entry_bytes);
        EXPECT_EQ(a.answer.kv.compressed, b.answer.kv.compressed);
        EXPECT_DOUBLE_EQ(a.answer.sparsity.density, b.answer.sparsity.density);
        EXPECT_EQ(a.answer.sparsity.rigid_heads, b.answer.sparsity.rigid_heads);
      }
  }
}

// Matrices that are converted while loading are cut in whole blocks of what they become. The
// columns of a product by whole numbers are rounded by the largest of what a rank has of them.
TEST(RanksOfWeights, AreCutInWholeBlocks) {
  for (const WeightFormat format : {WeightFormat::kQ8_0, WeightFormat::kQ4_K, WeightFormat::kFP8}) {
    SCOPED_TRACE(block_of(format).name);
    const auto logits_of = [&](const Ranks& ranks) {
      Engine engine(test::kNeedle, {.device = Device::kCpu,
                                    .threads = 1,
                                    .kv_type = DType::kF32,
                                    .math = Math::kF32,
                                    .weights = format,
                                    .ranks = ranks});
      std::vector<int32_t> text;
      for (int32_t i = 0; i < 40; ++i) text.push_back(300 + i * i * 37 % 3000);
      Request dense;
      dense.prefill = PrefillPolicy::dense();
      dense.decode = DecodePolicy::full();
      std::vector<float> logits;
      Session(engine).score(text, dense, 30, {.on_logits = [&](int64_t, auto row) {
                              logits.insert(logits.end(), row.begin(), row.end());
                            }});
      return logits;
    };
    const std::vector<float> want = logits_of(nullptr);
    ThreadRanks(2).run([&](const Ranks& ranks) {
      EXPECT_LT(test::nmse(logits_of(ranks), want), 1e-6) << "rank " << ranks->rank();
    });
  }
}

TEST(RanksOfWeights, PartsOfBlocksAreRefused) {
  const auto load = [](const Ranks& ranks) {
    const auto backend = make_cpu_backend(1, Math::kF32, ranks);
    Model::load(*backend, tiny("llama31"), WeightFormat::kQ8_0);
  };
  EXPECT_THAT(test::error_of([&] { ThreadRanks(2).run(load); }),
              testing::HasSubstr("down_proj.weight: each of 2 ranks needs 48 of its columns, which "
                                 "in Q8_0 come in blocks of 32"));
}

// Prompts of several policies, two of them the same, read and written at the same time: copied
// caches, prefixes that are found again, compressions, draws of every kind, an answer that is cut.
std::vector<Outcome> serve(const fs::path& dir, const Ranks& ranks) {
  TinyEngine tiny(dir, ranks);
  SchedulerOptions options;
  options.prefill = small(PrefillPolicy());
  options.max_sequences = 4;
  options.kv_bytes = options.prefix_bytes = int64_t{64} << 20;
  options.step_interval = {};  // decode steps between all layers
  if (ranks && ranks->rank() > 0) {
    Scheduler::follow(tiny.engine, options);
    return {};
  }
  const std::vector<int32_t> text = text_of(dir);
  std::vector<Policies> policies = all_policies();
  std::erase_if(policies, [](const Policies& p) { return p.prefill.budget.rigid_whole_prompt; });
  std::vector<Request> requests;
  for (const Policies& p : policies) {
    Request request;
    const auto n = std::ssize(requests);
    request.tokens.assign(text.begin(), text.begin() + kPrompt - n / 2 * 8);
    request.prefill = p.prefill;
    request.decode = p.decode;
    request.sampling = SamplingParams{};
    if (n % 3 == 1)
      request.sampling =
          SamplingParams{.temperature = 1, .repetition_penalty = 1.2f, .seed = uint64_t(n)};
    request.max_tokens = 20;
    request.ignore_eos = n % 2 == 0;
    requests.push_back(request);
    if (n % 4 == 0) requests.push_back(request);
  }
  Scheduler scheduler(tiny.engine, options);
  std::vector<Outcome> outcomes = test::run_together(scheduler, requests);
  std::ranges::move(test::run_together(scheduler, requests), std::back_inserter(outcomes));

  const auto run = [&](Job job) {
    std::promise<Outcome> ended;
    job.on_end = [&](Outcome outcome) { ended.set_value(std::move(outcome)); };
    scheduler.submit(std::move(job));
    return ended.get_future().get();
  };
  // An answer that is cut by whoever asked, in the middle.
  std::stop_source cancel;
  Job cut{.request = requests[0], .cancel = cancel.get_token()};
  cut.request.max_tokens = 1000;
  cut.on_delta = [&](const Delta&) { cancel.request_stop(); };
  EXPECT_EQ(run(cut).generation.finish_reason, FinishReason::kCancelled);
  // What bans all tokens ends nobody else's answer.
  Job banned{.request = requests[1]};
  for (int32_t token = 0; token < 128; ++token)
    banned.options.logit_bias.push_back({token, -INFINITY});
  EXPECT_TRUE(run(banned).is_asked_for);
  // A prompt's own tokens are reported.
  Job scored{.request = requests[0], .options = {.top_logprobs = 2, .score_prompt = true}};
  int64_t n_reports = 0;
  scored.on_delta = [&](const Delta& delta) { n_reports += std::ssize(delta.prompt_reports); };
  outcomes.push_back(run(scored));
  EXPECT_EQ(n_reports, std::ssize(requests[0].tokens) - 1);
  std::ranges::move(test::run_together(scheduler, {requests[0]}), std::back_inserter(outcomes));
  return outcomes;
}

TEST_P(RanksTest, ServeAsOneDoes) {
  const fs::path dir = tiny(GetParam());
  const std::vector<Outcome> want = serve(dir, nullptr);
  ThreadRanks(2).run([&](const Ranks& ranks) {
    const std::vector<Outcome> got = serve(dir, ranks);
    if (ranks->rank() > 0) return;
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_FALSE(got[i].error) << *got[i].error;
      EXPECT_EQ(got[i].generation.tokens, want[i].generation.tokens) << i;
      EXPECT_EQ(got[i].generation.kv.entry_bytes, want[i].generation.kv.entry_bytes) << i;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Of, RanksTest, testing::ValuesIn(kFamilies),
                         [](const auto& info) { return std::string(info.param); });

class RanksCudaTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (n_gpus() < 2) GTEST_SKIP() << "this machine has no two GPUs";
  }
};
EI_TWO_GPUS_TEST(RanksCudaTest);

// Of all families, dense: what is chosen by numbers in bf16 may differ by a block. Logits: the
// halves of every sum are rounded to bf16 as well, 2^-9 of their size, and so is all that follows.
TEST_P(RanksCudaTest, FamiliesComputeWhatOneCardDoes) {
  const std::vector<Policies> dense = {
      {"dense", small(PrefillPolicy::dense()), DecodePolicy::full()}};
  for (const char* family : kFamilies) {
    const fs::path dir = tiny(family);
    const Result want = results_of(dir, nullptr, Device::kCuda, dense)[0];
    ThreadRanks(2).run([&](const Ranks& ranks) {
      const Result got = results_of(dir, ranks, Device::kCuda, dense)[0];
      ASSERT_EQ(got.logits.size(), want.logits.size());
      const double nmse = test::nmse(got.logits, want.logits);
      EXPECT_LT(nmse, 1e-3) << family;
      if (ranks->rank() == 0) RecordProperty(family, fmt::format("{:.1e}", nmse));
    });
  }
}

// Every way of reading and of keeping a cache, on a document in which a model has something to
// find.
TEST_P(RanksCudaTest, GreedyTextIsOneCards) {
  Engine one(test::kNeedle, {.device = Device::kCuda});
  const eval::Document document = test::make_document(one, 8192, 5);
  std::vector<Policies> policies;
  for (const auto& [name, policy] : prefill_policies())
    policies.push_back({std::string(name), policy, DecodePolicy::full()});
  for (const auto& [name, policy] : decode_policies())
    if (policy.voter == Voter::kWindow)  // the others are the CPU's alone
      policies.push_back({std::string(name), PrefillPolicy(), policy});
  const auto answers = [&](Engine& engine) {
    std::vector<Generation> all;
    for (const Policies& p : policies) {
      Request request;
      request.prefill = p.prefill;
      request.decode = p.decode;
      Session session(engine);
      all.push_back(test::ask(session, document, document.needles[2], request));
    }
    return all;
  };
  const std::vector<Generation> want = answers(one);
  ThreadRanks(2).run([&](const Ranks& ranks) {
    Engine engine(test::kNeedle, {.device = Device::kCuda, .ranks = ranks});
    const std::vector<Generation> got = answers(engine);
    for (size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE(policies[i].name);
      EXPECT_EQ(got[i].text, want[i].text);
      EXPECT_EQ(got[i].kv.compressed, want[i].kv.compressed);
      // Budgets follow entropies of queries in bf16, and where the largest is all heads', so does
      // the work of all: 4% less was seen.
      EXPECT_NEAR(
          got[i].sparsity.density, want[i].sparsity.density,
          (policies[i].prefill.budget.max_over_heads ? 0.06 : 0.02) * want[i].sparsity.density);
    }
  });
}

}  // namespace
}  // namespace ei
