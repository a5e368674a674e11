#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <vector>

#include "ei/engine/engine.h"
#include "tests/allocation/count.h"
#include "tests/support/files.h"

namespace {
std::atomic<int64_t> n_calls = 0;
}

int64_t ei::test::n_allocations() { return n_calls; }

#if EI_COUNTS_ALLOCATIONS
// The C library's allocator, counted. Definitions in the program take the place of the library's
// everywhere, operator new and the shared libraries among them.
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t n, size_t size);
void* __libc_realloc(void* data, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) noexcept {
  ++n_calls;
  return __libc_malloc(size);
}
void* calloc(size_t n, size_t size) noexcept {
  ++n_calls;
  return __libc_calloc(n, size);
}
void* realloc(void* data, size_t size) noexcept {
  ++n_calls;
  return __libc_realloc(data, size);
}
void* aligned_alloc(size_t alignment, size_t size) noexcept {
  ++n_calls;
  return __libc_memalign(alignment, size);
}
void* memalign(size_t alignment, size_t size) noexcept {
  ++n_calls;
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** data, size_t alignment, size_t size) noexcept {
  ++n_calls;
  *data = __libc_memalign(alignment, size);
  return *data == nullptr;
}
}
#endif

namespace ei {
namespace {

// Allocations counted at every token of an answer.
std::vector<int64_t> count(const DecodePolicy& decode, int64_t n_prompt, int64_t max_tokens) {
  EngineOptions options;
  options.threads = 2;
  Engine engine(test::kNeedle, options);
  Session session(engine);
  Request request;
  for (int64_t i = 0; i < n_prompt; ++i)
    request.tokens.push_back(static_cast<int32_t>(300 + i * 37 % 3000));
  request.decode = decode;
  request.sampling = SamplingParams{};
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  std::vector<int64_t> seen;
  seen.reserve(static_cast<size_t>(2 * max_tokens));
  session.generate(request,
                   {.on_text = [&](std::string_view) { seen.push_back(test::n_allocations()); },
                    .on_prefill = {}});
  return seen;
}

// After 20 tokens scratch has grown to what a step needs, and pages of 512 rows are not full. What
// is left is the answer itself: its ids, the ids read and its text double now and then, twice or
// thrice each until there are 100. The last token is not looked at: with it come the statistics.
void expect_steady(const std::vector<int64_t>& seen) {
  constexpr size_t kFirst = 20;
  ASSERT_GE(seen.size(), 80u);
  EXPECT_LE(seen[seen.size() - 2] - seen[kFirst], 3 * 3)
      << "in " << seen.size() - kFirst << " tokens";
}

class TokenLoopTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!EI_COUNTS_ALLOCATIONS) GTEST_SKIP() << "sanitizers have their own allocator";
    const int64_t before = test::n_allocations();
    void* volatile data = std::malloc(1);
    std::free(data);
    ASSERT_GT(test::n_allocations(), before) << "allocations are not counted";
  }
};

TEST_F(TokenLoopTest, AllocatesNothingFromAFullCache) {
  expect_steady(count(DecodePolicy::full(), 100, 100));
}

TEST_F(TokenLoopTest, AllocatesNothingFromACompressedCache) {
  DecodePolicy decode;
  decode.budget = 64;
  decode.gap = 4;
  decode.regrow = 0;
  expect_steady(count(decode, 100, 100));
}

}  // namespace
}  // namespace ei
