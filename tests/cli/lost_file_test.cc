#include "apps/cli/lost_file.h"

#include <gtest/gtest.h>
#include <signal.h>

#include "ei/io/mapped_file.h"
#include "tests/support/files.h"

namespace ei::cli {
namespace {

// In a process of its own, whose handler stays.
TEST(LostFileDeathTest, IsNamed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const test::TempDir dir;
  test::write_file(dir / "weights", std::string(1 << 16, 'w'));
  EXPECT_EXIT(
      {
        report_lost_files();
        const MappedFile file(dir / "weights");
        std::filesystem::resize_file(dir / "weights", 100);
        const volatile std::byte* const bytes = file.bytes().data();
        for (size_t i = 0; i < file.bytes().size(); i += 4096) (void)bytes[i];
      },
      testing::ExitedWithCode(1), "entropyinfer: .*/weights: cannot be read any more");
}

// What no file has to do with ends the process as ever.
TEST(LostFileDeathTest, OtherBusErrorsAreNot) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        report_lost_files();
        raise(SIGBUS);
        raise(SIGBUS);
      },
      testing::KilledBySignal(SIGBUS), "");
}

}  // namespace
}  // namespace ei::cli
