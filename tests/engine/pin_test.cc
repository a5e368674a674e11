// EngineOptions::pin: where the threads of an engine are, and that nothing else changes.
#include <gmock/gmock.h>
#include <sched.h>

#include <filesystem>
#include <numeric>
#include <thread>

#include "ei/base/affinity.h"
#include "ei/engine/engine.h"
#include "tests/support/files.h"

namespace ei {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::Not;
using testing::ThrowsMessage;

// The masks of all threads of this process.
std::vector<std::vector<int>> masks() {
  std::vector<std::vector<int>> all;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    cpu_set_t set;
    if (sched_getaffinity(std::stoi(task.path().filename()), sizeof set, &set) != 0) continue;
    std::vector<int> cpus;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    all.push_back(cpus);
  }
  return all;
}

Engine engine(const std::string& pin, int threads, int tp = 1) {
  return Engine(test::kNeedle, {.device = Device::kCpu, .threads = threads, .pin = pin, .tp = tp});
}

// What the engine writes after 700 tokens, and what `look` sees while it does.
std::vector<int32_t> answer(Engine engine, const std::function<void()>& look) {
  Session session(engine);
  Request request;
  request.tokens.resize(700);
  std::iota(request.tokens.begin(), request.tokens.end(), 5);
  request.max_tokens = 8;
  request.ignore_eos = true;
  return session.generate(request, {.on_step = look}).tokens;
}

TEST(PinTest, ThreadsAreOnTheirCpusAndWriteTheSame) {
  const std::vector<int> all = allowed_cpus();
  if (all.size() < 2) GTEST_SKIP() << "one CPU: there is nowhere else to be pinned to";
  const int a = all.front(), b = all.back();
  std::vector<int32_t> expected;
  // Each in a thread of its own, whose team ends with it.
  std::thread([&] {
    expected =
        answer(engine("", 2), [&] { EXPECT_THAT(masks(), Not(Contains(testing::SizeIs(1)))); });
  }).join();
  EXPECT_EQ(expected.size(), 8u);
  std::thread([&] {
    const auto pin = std::to_string(a) + "," + std::to_string(b);
    EXPECT_EQ(answer(engine(pin, 2),
                     [&] {
                       EXPECT_THAT(masks(), Contains(std::vector<int>{b}));  // the other thread
                       EXPECT_EQ(allowed_cpus(), all);  // the caller's, between two steps
                     }),
              expected);
  }).join();
  std::thread([&] {  // of two ranks of a thread each, both are callers
    EXPECT_EQ(answer(engine("auto", 2, 2), [&] { EXPECT_EQ(allowed_cpus(), all); }).size(), 8u);
  })
      .join();
}

TEST(PinTest, EveryThreadNeedsACpu) {
  const std::string cpu = std::to_string(allowed_cpus().front());
  EXPECT_THAT([&] { engine(cpu, 2); }, ThrowsMessage<Error>(HasSubstr("2 threads")));
  EXPECT_THAT([&] { engine(cpu, 2, 2); }, ThrowsMessage<Error>(HasSubstr("2 ranks of 1 threads")));
  EXPECT_THAT([&] { engine("first", 1); }, ThrowsMessage<Error>(HasSubstr("pin is first")));
}

}  // namespace
}  // namespace ei
