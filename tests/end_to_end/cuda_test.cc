// The GPU answers as the CPU does, and a text that does not fit its memory is an error that leaves
// the engine usable.
#include <gmock/gmock.h>

#include "ei/cuda/backend.h"
#include "ei/engine/engine_impl.h"
#include "tests/end_to_end/documents.h"
#include "tests/support/backend_fixture.h"
#include "tests/support/files.h"

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

void expect_the_cpus_text(int64_t n_tokens) {
  Engine cpu(kNeedle, {.device = Device::kCpu}), gpu(kNeedle, {.device = Device::kCuda});
  const eval::Document document = make_document(cpu, n_tokens, 5);
  for (const auto& [name, request] : policies()) {
    SCOPED_TRACE(name);
    const Generation want = answer(cpu, document, request), got = answer(gpu, document, request);
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
