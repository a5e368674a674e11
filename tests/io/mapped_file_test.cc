#include "ei/io/mapped_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "tests/support/files.h"

namespace ei::test {
namespace {

// KiB of a mapped file that this process has in memory.
int64_t resident_kib(const std::string& path) {
  std::ifstream maps("/proc/self/smaps");
  bool found = false;
  for (std::string line; std::getline(maps, line);) {
    found = found || line.ends_with(path);
    if (found && line.starts_with("Rss:")) return std::stoll(line.substr(4));
  }
  return -1;
}

// Whole pages of a part go and come back; other memory is left alone.
TEST(MappedFile, LetsGoOfAPart) {
  const TempDir dir;
  const std::string path = dir / "bytes";
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::string bytes(64 * page, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i / page + i);
  std::ofstream(path) << bytes;
  const MappedFile file(path);
  const auto is_whole = [&](std::span<const std::byte> read) {
    return std::ranges::equal(read, std::as_bytes(std::span(bytes)));
  };
  ASSERT_TRUE(is_whole(file.bytes()));
  const int64_t before = resident_kib(path);
  file.let_go(file.bytes().subspan(page / 2, 33 * page));  // 32 whole ones
  if (before > 0) {
    EXPECT_EQ(resident_kib(path), before - static_cast<int64_t>(32 * page / 1024));
  }
  EXPECT_TRUE(is_whole(file.bytes()));

  const std::vector<std::byte> other(bytes.size(), std::byte{7});
  file.let_go(other);
  EXPECT_EQ(std::ranges::count(other, std::byte{7}), std::ssize(other));
}

}  // namespace
}  // namespace ei::test
