#include "apps/eval/ruler.h"

#include <gtest/gtest.h>

#include "tests/support/files.h"

namespace ei::eval {
namespace {

const std::string kGood =
    R"({"index": 3, "input": "What?", "outputs": ["a", "b"], "length": 40, "truncation": -1})";

TEST(RulerTest, ReadsFilesAsRulerWritesThem) {
  const test::TempDir dir;
  std::filesystem::create_directories(dir / "niah_single_1");
  test::write_file(dir / "niah_single_1/validation.jsonl", kGood + "\n" + kGood);
  test::write_file(dir / "vt.jsonl", kGood + "\n\n");
  test::write_file(dir / "notes.txt", "not read");
  const auto lines = read_ruler(dir.path(), false);
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].task, "niah_single_1");
  EXPECT_EQ(lines[2].task, "vt");
  EXPECT_EQ(lines[1].index, 3);
  EXPECT_EQ(lines[1].length, 40);
  EXPECT_EQ(lines[1].input, "What?");
  EXPECT_EQ(lines[1].outputs, (std::vector<std::string>{"a", "b"}));
}

TEST(RulerTest, BadLinesAreNamedAndLeftOutOnlyIfAsked) {
  for (const char* bad : {"{", "[]", R"({"index": 1, "input": "x", "outputs": ["a"]})",
                          R"({"index": 1, "input": "x", "outputs": [], "length": 4})",
                          R"({"index": 1, "input": "x", "outputs": "a", "length": 4})",
                          R"({"index": 1, "input": 7, "outputs": ["a"], "length": 4})",
                          R"({"index": 1, "input": "x", "outputs": ["a"], "length": 0})"}) {
    const test::TempDir dir;
    test::write_file(dir / "vt.jsonl", kGood + "\n" + bad + "\n" + kGood + "\n");
    const std::string error = test::error_of([&] { read_ruler(dir.path(), false); });
    EXPECT_NE(error.find("vt.jsonl, line 2: "), std::string::npos) << bad << ": " << error;
    EXPECT_EQ(read_ruler(dir.path(), true).size(), 2u) << bad;
  }
  const test::TempDir dir;
  EXPECT_NE(test::error_of([&] { read_ruler(dir.path(), false); }), "");
  EXPECT_NE(test::error_of([&] { read_ruler(dir / "gone", false); }), "");
}

}  // namespace
}  // namespace ei::eval
