// The GPU answers as the CPU does, and a text that does not fit its memory is an error that leaves
// the engine usable.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "ei/cuda/backend.h"
#include "ei/engine/engine_impl.h"
#include "ei/policy/named.h"
#include "tests/end_to_end/documents.h"
#include "tests/support/backend_fixture.h"
#include "tests/support/files.h"
#include "tests/support/mixed_load.h"
#include "tests/support/needle_gguf.h"

namespace ei::test {
namespace {

class CudaTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "this machine has no GPU that the kernels run on";
  }
};
EI_GPU_TEST(CudaTest);

Generation answer(Engine& engine, const eval::Document& document, const Request& request) {
  Session session(engine);
  return ask(session, document, document.needles[2], request);
}

// Those of all ends to end, and every estimate.
std::map<std::string, Request> all_policies() {
  std::map<std::string, Request> all = policies();
  for (const char* name : {"entropy", "xattention", "flashprefill"}) {
    Request request;
    request.prefill = *find_prefill(name);
    request.decode = DecodePolicy::full();
    all.emplace("prefill " + std::string(name), request);
  }
  return all;
}

void expect_the_cpus_text(int64_t n_tokens, std::optional<WeightFormat> weights = {},
                          const std::filesystem::path& model = kNeedle) {
  Engine cpu(model, {.device = Device::kCpu, .weights = weights}),
      gpu(model, {.device = Device::kCuda, .weights = weights});
  const eval::Document document = make_document(cpu, n_tokens, 5);
  for (const auto& [name, request] : all_policies()) {
    SCOPED_TRACE(name);
    const Generation want = answer(cpu, document, request), got = answer(gpu, document, request);
    EXPECT_EQ(got.text, want.text);
    EXPECT_EQ(got.prompt_tokens, want.prompt_tokens);
    EXPECT_EQ(got.kv.compressed, want.kv.compressed);
    // Budgets follow entropies of queries in bf16, and so do shares.
    EXPECT_NEAR(got.sparsity.density, want.sparsity.density, 0.02 * want.sparsity.density);
  }
}

// Pages that leave the GPU come back from its host's memory, beside answers that are written: the
// second time a conversation is read it is what it was the first.
TEST_P(CudaTest, PrefixesComeBackFromTheHost) {
  Engine gpu(kNeedle, {.device = Device::kCuda});
  SchedulerOptions options;
  options.prefill = *find_prefill("entropy");
  options.prefix_bytes = 1 << 20;
  options.prefix_host_bytes = 256 << 20;
  Scheduler scheduler(gpu, options);
  std::vector<Request> requests(3);
  for (size_t i = 0; i < 3; ++i) {
    requests[i].tokens = gpu.tokenize(make_document(gpu, 8192, int(i) + 1).text);
    requests[i].prefill = options.prefill;
    requests[i].sampling = SamplingParams{};
    requests[i].max_tokens = 32;
    requests[i].ignore_eos = true;
  }
  std::vector<std::vector<int32_t>> first;
  for (const Request& request : requests)
    first.push_back(run_together(scheduler, {request})[0].generation.tokens);
  EXPECT_GT(scheduler.stats().prefix_host_bytes, scheduler.stats().prefix_bytes);
  for (int round = 0; round < 3; ++round)
    for (size_t i = 0; i < 3; ++i) {
      const Outcome again = run_together(scheduler, {requests[i]})[0];
      EXPECT_EQ(again.error.value_or(""), "");
      EXPECT_EQ(again.generation.tokens, first[i]);
      EXPECT_GT(again.generation.host_tokens, 7000);
    }
  for (const Outcome& together : run_together(scheduler, requests))
    EXPECT_GT(together.generation.host_tokens, 7000);
}

TEST_P(CudaTest, GreedyTextOf8kIsTheCpus) { expect_the_cpus_text(8192); }
TEST_P(CudaTest, GreedyTextOf32kIsTheCpus) { expect_the_cpus_text(32768); }
TEST_P(CudaTest, GreedyTextOf64kIsTheCpus) { expect_the_cpus_text(65536); }

// Of 256 columns each Q4_K, of 704 Q4_1, and a table in Q8_0; blocks of FP8.
TEST_P(CudaTest, GreedyTextByQuantizedWeightsIsTheCpus) {
  expect_the_cpus_text(8192, WeightFormat::kQ4_K);
  expect_the_cpus_text(8192, WeightFormat::kFP8);
}

TEST_P(CudaTest, GreedyTextOfGgufFilesIsTheCpus) {
  const TempDir dir;
  for (const uint32_t type : {kGgufQ8_0, kGgufQ4_0}) {
    SCOPED_TRACE(type);
    write_file(dir / "needle.gguf", needle_gguf(type));
    expect_the_cpus_text(8192, {}, dir / "needle.gguf");
  }
}

// What the model holds likely next, as logarithms, at some n tokens of a text.
std::vector<std::vector<float>> logits_of(Engine& engine, const std::vector<int32_t>& tokens,
                                          const Request& request, int64_t n) {
  std::vector<std::vector<float>> logs;
  const auto log_softmax = [](std::span<const float> logits) {
    const float top = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float x : logits) sum += std::exp(double(x - top));
    std::vector<float> row(logits.begin(), logits.end());
    for (float& x : row) x -= top + float(std::log(sum));
    return row;
  };
  const int64_t step = std::max<int64_t>(1, std::ssize(tokens) / n);
  Session(engine).score(tokens, request, -1,
                        {.on_logits = [&](int64_t position, std::span<const float> logits) {
                          if (position % step == 0) logs.push_back(log_softmax(logits));
                        }});
  return logs;
}

// The mean divergence of the next token's distribution, in nats.
double divergence(const std::vector<std::vector<float>>& want,
                  const std::vector<std::vector<float>>& got) {
  require(got.size() == want.size() && !want.empty(), "{} rows of logits for {}", got.size(),
          want.size());
  double sum = 0;
  for (size_t i = 0; i < want.size(); ++i)
    for (size_t t = 0; t < want[i].size(); ++t)
      sum += std::exp(double(want[i][t])) * (want[i][t] - got[i][t]);
  return sum / double(want.size());
}

struct Rounding {
  std::string name;
  Math math;
  DType kv_type;
  double bound;
};

// The answer has the value, and the next token's distribution is nearly the same: its divergence is
// recorded, and bounded by about one and a half times what was measured.
TEST_P(CudaTest, RoundingToFp8LosesLittle) {
  Engine exact(kNeedle, {.device = Device::kCuda});
  for (const Rounding& c : {Rounding{"math", Math::kFP8, DType::kBF16, 0.055},
                            {"kv", Math::kBF16, DType::kFP8, 0.026},
                            {"both", Math::kFP8, DType::kFP8, 0.085}}) {
    Engine rounded(kNeedle, {.device = Device::kCuda, .kv_type = c.kv_type, .math = c.math});
    for (const int64_t n_tokens : {8192, 65536}) {
      const eval::Document document = make_document(exact, n_tokens, 5);
      for (const auto& [name, request] : policies()) {
        SCOPED_TRACE(c.name + ", " + name + ", " + std::to_string(n_tokens));
        EXPECT_THAT(answer(rounded, document, request).text,
                    testing::HasSubstr(document.needles[2].value));
        if (name == "entropy and latent") continue;  // read like the one before
        const std::vector<int32_t> tokens = exact.tokenize(document.text);
        const double kl = divergence(logits_of(exact, tokens, request, 4096),
                                     logits_of(rounded, tokens, request, 4096));
        RecordProperty("kl_" + c.name + "_" + name + "_" + std::to_string(n_tokens),
                       std::to_string(kl));
        EXPECT_LE(kl, c.bound);
      }
    }
  }
}

// The same of a model of language, on 8,000 tokens of this project's documents.
TEST_P(CudaTest, RoundingToFp8LosesLittleOfSmolLM2) {
  const std::string source = EI_SOURCE_DIR, model = source + "/build/smollm2/model";
  if (!std::filesystem::exists(model))
    GTEST_SKIP() << model << " is not here; `make smollm2-32k` makes it";
  Engine exact(model, {.device = Device::kCuda});
  std::string text;
  for (const char* name : {"README.md", "docs/DESIGN.md", "docs/METHOD.md"})
    text += read_file(source + "/" + name);
  std::vector<int32_t> tokens = exact.tokenize(text);
  ASSERT_GE(tokens.size(), 8000);
  tokens.resize(8000);
  for (const char* name : {"dense", "entropy"}) {
    Request request;
    request.prefill = *find_prefill(name);
    request.prefill.threshold_len = 1024;
    request.decode = DecodePolicy::full();
    const auto want = logits_of(exact, tokens, request, 1000);
    for (const Rounding& c : {Rounding{"math", Math::kFP8, DType::kBF16, 0.06},
                              {"kv", Math::kBF16, DType::kFP8, 0.01},
                              {"both", Math::kFP8, DType::kFP8, 0.08}}) {
      Engine rounded(model, {.device = Device::kCuda, .kv_type = c.kv_type, .math = c.math});
      const double kl = divergence(want, logits_of(rounded, tokens, request, 1000));
      RecordProperty("kl_" + c.name + "_" + name, std::to_string(kl));
      EXPECT_LE(kl, c.bound) << c.name << ", " << name;
    }
  }
}

// Pages that lie as far from the weights as memory is large are addressed all the same.
TEST_P(CudaTest, GreedyTextIsTheSameAroundALargeGap) {
  Engine engine(kNeedle, {.device = Device::kCuda});
  const eval::Document document = make_document(engine, 8192, 5);
  const std::string want = answer(engine, document, {}).text;
  Backend& backend = *engine.impl().backend;
  const int64_t bytes = backend.available_bytes() - (int64_t{4} << 30);
  void* gap = backend.allocate(bytes);
  EXPECT_EQ(answer(engine, document, {}).text, want);
  EXPECT_FALSE(answer(engine, make_document(engine, 32768, 5), {}).text.empty());
  backend.release(gap, bytes);
}

TEST_P(CudaTest, WhatDoesNotFitIsAnErrorWithThePlan) {
  Engine engine(kNeedle, {.device = Device::kCuda});
  const eval::Document document = make_document(engine, 32768, 5);
  const std::string want = answer(engine, document, {}).text;
  Backend& backend = *engine.impl().backend;
  const int64_t bytes = backend.available_bytes() - (int64_t{16} << 20);
  void* taken = backend.allocate(bytes);
  Request request;
  try {
    answer(engine, document, request);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("available"));
    EXPECT_THAT(error.what(), testing::HasSubstr("weights"));
  }
  backend.release(taken, bytes);
  EXPECT_EQ(answer(engine, document, request).text, want);
}

}  // namespace
}  // namespace ei::test
