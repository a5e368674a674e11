#include "ei/base/available_memory.h"

#include <gtest/gtest.h>

namespace ei {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

TEST(AvailableMemoryTest, OfTheMachine) {
  EXPECT_EQ(machine_available("MemTotal:       16384 kB\nMemFree:         512 kB\n"
                              "MemAvailable:    8192 kB\nBuffers:           1 kB\n"),
            8 * kMiB);
  EXPECT_EQ(machine_available(""), INT64_MAX);
  EXPECT_EQ(machine_available("MemAvailable: 9223372036854775807 kB"), INT64_MAX);
  EXPECT_GT(available_memory(), 0);
}

TEST(AvailableMemoryTest, CachedFilesOfACgroupAreNotUsed) {
  const char* version_2 =
      "anon 104857600\nfile 754974720\nfile_mapped 1048576\n"
      "inactive_file 419430400\nactive_file 314572800\nworkingset_refault_file 1\n";
  EXPECT_EQ(cgroup_available("1073741824\n", "943718400\n", version_2), (1024 - 900 + 700) * kMiB);
  // Version 1: the group's own pages, and with those of the groups below it.
  const char* version_1 =
      "inactive_file 1048576\nactive_file 1048576\n"
      "total_inactive_file 104857600\ntotal_active_file 209715200\n";
  EXPECT_EQ(cgroup_available("1073741824\n", "943718400\n", version_1), (1024 - 900 + 300) * kMiB);
}

TEST(AvailableMemoryTest, OfACgroupWithoutLimitOrStatistics) {
  EXPECT_EQ(cgroup_available("max\n", "943718400\n", ""), INT64_MAX);
  EXPECT_EQ(cgroup_available("", "", ""), INT64_MAX);
  EXPECT_EQ(cgroup_available("100", "30", ""), 70);
  EXPECT_EQ(cgroup_available("100", "130", "active_file 20"), 0);
  // The files are read one after the other, so that they may contradict each other.
  EXPECT_EQ(cgroup_available("100", "30", "active_file 40\ninactive_file 9223372036854775807"),
            100);
  EXPECT_EQ(cgroup_available("9223372036854771712", "5", "active_file x"), 9223372036854771707);
}

}  // namespace
}  // namespace ei
