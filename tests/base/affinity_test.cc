#include "ei/base/affinity.h"

#include <gmock/gmock.h>
#include <sched.h>

#include <climits>
#include <functional>
#include <string>
#include <thread>

#include "ei/base/error.h"

namespace ei {
namespace {

using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::ThrowsMessage;
using testing::UnorderedElementsAreArray;

// Does it in a thread that may run on these alone.
void on(const std::vector<int>& cpus, const std::function<void()>& check) {
  std::thread([&] {
    set_cpus(pthread_self(), cpus);
    check();
  }).join();
}

TEST(AffinityTest, AllowedIsTheThreadsMask) {
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  const std::vector<int> cpus = allowed_cpus();
  EXPECT_EQ(std::ssize(cpus), CPU_COUNT(&set));
  for (const int cpu : cpus) EXPECT_TRUE(CPU_ISSET(cpu, &set)) << cpu;
  on({cpus.back()}, [&] { EXPECT_THAT(allowed_cpus(), ElementsAreArray({cpus.back()})); });
  EXPECT_EQ(allowed_cpus(), cpus);  // of that thread alone
}

TEST(AffinityTest, ListsAreReadInTheirOrder) {
  const std::vector<int> all = allowed_cpus();
  EXPECT_THAT(pinned_cpus(""), IsEmpty());
  EXPECT_THAT(pinned_cpus("auto"), UnorderedElementsAreArray(all));
  const int a = all.front(), b = all.back();
  EXPECT_THAT(pinned_cpus(std::to_string(a)), ElementsAreArray({a}));
  if (b == a) GTEST_SKIP() << "one CPU: no list of two can be had";
  const auto text = [](int x, const std::string& between, int y) {
    return std::to_string(x) + between + std::to_string(y);
  };
  EXPECT_THAT(pinned_cpus(text(b, ",", a)), ElementsAreArray({b, a}));
  EXPECT_THAT(pinned_cpus(text(a, "-", b) + ":" + std::to_string(b - a)), ElementsAreArray({a, b}));
  const std::string far = std::to_string(a) + "-8190:" + std::to_string(8190 - a);
  EXPECT_THAT([&] { pinned_cpus(far); },  // none between the two
              ThrowsMessage<Error>(HasSubstr("may not run on CPU 8190")));
  on({b}, [&] {  // what the thread may not use is not there
    EXPECT_THAT(pinned_cpus("auto"), ElementsAreArray({b}));
    EXPECT_THAT([&] { pinned_cpus(std::to_string(a)); },
                ThrowsMessage<Error>(HasSubstr("may not run on CPU " + std::to_string(a))));
  });
}

TEST(AffinityTest, ListsThatCannotBeAreRefused) {
  for (const char* text : {"x", "0-", "-1", "1-0", "0,", ",0", "0 ", "0-1:0", "0:", "0x1", "0-9000",
                           "99999999999999999999", "auto,0", "Auto"})
    EXPECT_THAT([&] { pinned_cpus(text); },
                ThrowsMessage<Error>(HasSubstr(std::string("pin is ") + text + ", expected auto")))
        << text;
  const std::string cpu = std::to_string(allowed_cpus().front());
  EXPECT_THAT([&] { pinned_cpus(cpu + "," + cpu); }, ThrowsMessage<Error>(HasSubstr("twice")));
  EXPECT_THAT([&] { pinned_cpus("8191"); }, ThrowsMessage<Error>(HasSubstr("may not run")));
}

TEST(AffinityTest, QuotasCountAsCpus) {
  EXPECT_EQ(cgroup_cpus("200000 100000\n"), 2);
  EXPECT_EQ(cgroup_cpus("250000 100000\n"), 3);
  EXPECT_EQ(cgroup_cpus("1000 100000\n"), 1);
  EXPECT_EQ(cgroup_cpus("400000\n100000\n"), 4);  // version 1: two files
  for (const char* text : {"", "max 100000\n", "-1\n100000\n", "200000", "200000 0", "0x 1"})
    EXPECT_EQ(cgroup_cpus(text), INT_MAX) << text;
}

TEST(AffinityTest, AThreadForEachCpu) {
  const int all = static_cast<int>(allowed_cpus().size());
  EXPECT_GE(default_threads(), 1);
  EXPECT_LE(default_threads(), all);
  EXPECT_EQ(default_threads({allowed_cpus().front()}), 1);
}

}  // namespace
}  // namespace ei
