#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <utility>

#include "tests/support/files.h"
#include "tests/support/mixed_load.h"

namespace {

std::atomic<int64_t> n_left = 0;         // allocations until one fails; 0: none does
thread_local bool is_the_tests = false;  // what is allocated now, and does not fail

void* try_allocate(size_t size) noexcept {
  if (!is_the_tests && n_left > 0 && --n_left == 0) return nullptr;
  return std::malloc(size > 0 ? size : 1);
}

void* allocate(size_t size) {
  if (void* data = try_allocate(size)) return data;
  throw std::bad_alloc();
}

}  // namespace

// Not inlined: the compiler would take new and free() for a pair that does not match.
[[gnu::noinline]] void* operator new(size_t size) { return allocate(size); }
[[gnu::noinline]] void* operator new[](size_t size) { return allocate(size); }
[[gnu::noinline]] void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return try_allocate(size);
}
[[gnu::noinline]] void operator delete(void* data) noexcept { std::free(data); }
[[gnu::noinline]] void operator delete[](void* data) noexcept { std::free(data); }
[[gnu::noinline]] void operator delete(void* data, size_t) noexcept { std::free(data); }
[[gnu::noinline]] void operator delete[](void* data, size_t) noexcept { std::free(data); }

namespace ei {
namespace {

// What is done inside is the test's own affair, or the engine's.
class As {
 public:
  explicit As(bool tests) : before_(std::exchange(is_the_tests, tests)) {}
  ~As() { is_the_tests = before_; }

 private:
  bool before_;
};

// Whatever allocation the scheduler's thread is refused, one request ends for it at most, everybody
// hears the end, and the others' answers are what they were.
TEST(OutOfMemoryTest, OneAllocationEndsOneRequest) {
  const As tests(true);
  test::SmallEngine small;
  const std::vector<Request> requests = test::mixed_requests();
  std::vector<std::vector<int32_t>> want;
  for (const Request& request : requests)
    want.push_back(Session(small.engine).generate(request).tokens);
  const int64_t bytes = small.backend->allocated_bytes;
  int64_t n_failed = 0;
  bool reached = true;
  for (int64_t k = 1; reached; ++k) {
    SCOPED_TRACE(k);
    {
      Scheduler scheduler(small.engine, test::mixed_options(1 << 20));
      std::vector<Outcome> got(requests.size());
      std::vector<std::promise<void>> ended(requests.size());
      std::vector<Job> jobs(requests.size());
      for (size_t i = 0; i < requests.size(); ++i) {
        jobs[i].request = requests[i];
        jobs[i].on_end = [&, i](Outcome outcome) {
          const As also_tests(true);
          got[i] = std::move(outcome);
          ended[i].set_value();
        };
      }
      n_left = k;
      scheduler.submit(std::move(jobs));
      for (auto& promise : ended) promise.get_future().wait();
      scheduler.wait_idle(std::chrono::steady_clock::time_point::max());
      reached = n_left <= 0;
      n_left = 0;
      n_failed += test::expect_one_error_at_most(scheduler, got, want, "out of memory");
    }
    EXPECT_EQ(small.backend->allocated_bytes, bytes);
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(n_failed, 50);
}

TEST(OutOfMemoryTest, ASubmissionIsTakenWholeOrNotAtAll) {
  const As tests(true);
  test::SmallEngine small;
  Scheduler scheduler(small.engine, test::mixed_options(0));
  bool taken = false;
  for (int64_t k = 1; !taken; ++k) {
    SCOPED_TRACE(k);
    std::vector<Job> jobs(3);
    std::atomic<int> n_ended = 0;
    for (Job& job : jobs) {
      job.request = test::SmallEngine::request(5, 1);
      job.on_end = [&](const Outcome&) { ++n_ended; };
    }
    try {
      const As engines(false);
      n_left = k;
      scheduler.submit(std::move(jobs), [&] {
        n_left = 0;
        taken = true;
      });
    } catch (const std::bad_alloc&) {
    }
    n_left = 0;
    scheduler.wait_idle(std::chrono::steady_clock::time_point::max());
    EXPECT_EQ(n_ended, taken ? 3 : 0);
  }
}

TEST(OutOfMemoryTest, ASessionGoesOnAfterAFailure) {
  const As tests(true);
  test::SmallEngine small;
  const Request request = test::mixed_requests()[0];
  const std::vector<int32_t> want = Session(small.engine).generate(request).tokens;
  const int64_t bytes = small.backend->allocated_bytes;
  {
    Session session(small.engine);
    bool reached = true;
    for (int64_t k = 1; reached; ++k) {
      SCOPED_TRACE(k);
      try {  // what can do without some memory goes on without
        const As engines(false);
        n_left = k;
        EXPECT_EQ(session.generate(request).tokens, want);
      } catch (const std::bad_alloc&) {
        EXPECT_LE(n_left, 0);
      }
      reached = n_left <= 0;
      n_left = 0;
      EXPECT_EQ(session.generate(request).tokens, want);
      session.clear();
      if (testing::Test::HasFailure()) return;
    }
  }
  EXPECT_EQ(small.backend->allocated_bytes, bytes);
}

}  // namespace
}  // namespace ei
