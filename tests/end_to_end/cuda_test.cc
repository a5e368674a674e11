// The GPU answers as the CPU does, and a text that does not fit its memory is an error that leaves
// the engine usable.
#ifdef EI_CUDA
#include <gmock/gmock.h>

#include <map>

#include "apps/eval/document.h"
#include "ei/cuda/backend.h"
#include "ei/engine/engine_impl.h"
#include "tests/support/files.h"

namespace ei {
namespace {

class CudaTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "this machine has no GPU that the kernels run on";
  }
};
INSTANTIATE_TEST_SUITE_P(On, CudaTest, testing::Values("cuda"),
                         [](const auto& info) { return info.param; });

eval::Document make_document(const Engine& engine, int64_t n_tokens) {
  return eval::make_document(
      {.n_tokens = n_tokens, .n_needles = 4, .seed = 5},
      [&](std::string_view text) { return int64_t(engine.tokenize(text).size()); });
}

std::map<std::string, Request> policies() {
  Request dense, entropy, latent;
  dense.prefill = PrefillPolicy::dense();
  dense.decode = entropy.decode = DecodePolicy::full();
  return {{"dense", dense}, {"entropy", entropy}, {"entropy and latent", latent}};
}

Generation ask(Engine& engine, const eval::Document& document, Request request) {
  request.messages = {{"user", {document.text, document.needles[2].question()}}};
  request.max_tokens = 48;
  Session session(engine);
  return session.generate(request);
}

void expect_the_cpus_text(int64_t n_tokens) {
  Engine cpu(test::kNeedle, {.device = Device::kCpu}),
      gpu(test::kNeedle, {.device = Device::kCuda});
  const eval::Document document = make_document(cpu, n_tokens);
  for (const auto& [name, request] : policies()) {
    SCOPED_TRACE(name);
    const Generation want = ask(cpu, document, request), got = ask(gpu, document, request);
    EXPECT_EQ(got.text, want.text);
    EXPECT_EQ(got.prompt_tokens, want.prompt_tokens);
    EXPECT_EQ(got.kv.compressed, want.kv.compressed);
    // Budgets follow entropies of queries in bf16.
    EXPECT_NEAR(got.sparsity.density, want.sparsity.density, 0.02 * want.sparsity.density);
  }
}

TEST_P(CudaTest, GreedyTextOf8kIsTheCpus) { expect_the_cpus_text(8192); }
TEST_P(CudaTest, GreedyTextOf32kIsTheCpus) { expect_the_cpus_text(32768); }
TEST_P(CudaTest, GreedyTextOf64kIsTheCpus) { expect_the_cpus_text(65536); }

// Pages that lie as far from the weights as memory is large are addressed all the same.
TEST_P(CudaTest, GreedyTextIsTheSameAroundALargeGap) {
  Engine engine(test::kNeedle, {.device = Device::kCuda});
  const eval::Document document = make_document(engine, 8192);
  const std::string want = ask(engine, document, {}).text;
  Backend& backend = *engine.impl().backend;
  const int64_t bytes = backend.available_bytes() - (int64_t{4} << 30);
  void* gap = backend.allocate(bytes);
  EXPECT_EQ(ask(engine, document, {}).text, want);
  EXPECT_FALSE(ask(engine, make_document(engine, 32768), {}).text.empty());
  backend.release(gap, bytes);
}

TEST_P(CudaTest, WhatDoesNotFitIsAnErrorWithThePlan) {
  Engine engine(test::kNeedle, {.device = Device::kCuda});
  const eval::Document document = make_document(engine, 32768);
  const std::string want = ask(engine, document, {}).text;
  Backend& backend = *engine.impl().backend;
  const int64_t bytes = backend.available_bytes() - (int64_t{16} << 20);
  void* taken = backend.allocate(bytes);
  Request request;
  try {
    ask(engine, document, request);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("available"));
    EXPECT_THAT(error.what(), testing::HasSubstr("weights"));
  }
  backend.release(taken, bytes);
  EXPECT_EQ(ask(engine, document, request).text, want);
}

}  // namespace
}  // namespace ei
#endif
