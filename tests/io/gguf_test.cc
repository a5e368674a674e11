#include "ei/io/gguf.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include "tests/support/files.h"
#include "tests/support/gguf.h"

namespace ei::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;

GgufPart parse_part(const std::string& bytes) {
  return parse_gguf(std::as_bytes(std::span(bytes)), "f.gguf");
}
std::string parse_error(const std::string& bytes) {
  return error_of([&] { parse_part(bytes); });
}

GgufWriter small() {
  GgufWriter file;
  file.u32("n", 7);
  file.f32("x", 0.5f);
  file.boolean("yes", true);
  file.string("name", "a name");
  file.strings("words", {"a", "", "bc"});
  file.i32s("ids", {3, -4});
  file.f32s("scores", {1, -2.5f});
  file.raw("big", 10, std::string(8, '\xff'));
  file.tensor("w", 2, {64, 3}, std::string(3 * 36, 'w'));  // Q4_0
  file.tensor("v", 0, {5}, std::string(20, 'v'));          // F32
  return file;
}

TEST(Gguf, ReadsKeysAndTensors) {
  const std::string bytes = small().bytes();
  const auto [keys, tensors] = parse_part(bytes);
  EXPECT_EQ(keys.integer("n", 0, 10), 7);
  EXPECT_EQ(keys.integer("absent", 0, 10, 3), 3);
  EXPECT_EQ(keys.number("x", 0, 1), 0.5);
  EXPECT_EQ(keys.number("n", 0, 10), 7);
  EXPECT_TRUE(keys.boolean("yes", false));
  EXPECT_EQ(keys.string("name"), "a name");
  EXPECT_THAT(keys.strings("words", 3), ElementsAre("a", "", "bc"));
  EXPECT_THAT(keys.integers("ids", 2), ElementsAre(3, -4));
  EXPECT_THAT(keys.numbers("scores", 2), ElementsAre(1, -2.5f));
  EXPECT_TRUE(keys.strings("absent", 2).empty());
  ASSERT_EQ(tensors.size(), 2u);
  const TensorInfo& w = tensors.at("w");
  EXPECT_EQ(w.dtype, "Q4_0");
  EXPECT_THAT(w.shape, ElementsAre(3, 64));
  EXPECT_EQ(w.data.size(), 108u);
  EXPECT_EQ(w.data[0], std::byte{'w'});
  EXPECT_EQ(tensors.at("v").data[19], std::byte{'v'});
}

TEST(Gguf, NamesAKeyOfAnotherTypeOrRange) {
  const std::string bytes = small().bytes();
  const GgufMetadata keys = parse_part(bytes).metadata;
  const auto of = [&](auto read) { return error_of([&] { read(); }); };
  EXPECT_THAT(of([&] { keys.integer("n", 0, 6); }),
              AllOf(HasSubstr("f.gguf"), HasSubstr("n is 7")));
  EXPECT_THAT(of([&] { keys.integer("name", 0, 6); }), HasSubstr("string, expected an integer"));
  EXPECT_THAT(of([&] { keys.integer("x", 0, 6); }), HasSubstr("f32, expected an integer"));
  EXPECT_THAT(of([&] { keys.integer("big", INT64_MIN, INT64_MAX); }), HasSubstr("more than 2^63"));
  EXPECT_THAT(of([&] { keys.integer("gone", 0, 6); }), HasSubstr("gone is missing"));
  EXPECT_THAT(of([&] { keys.string("words"); }), HasSubstr("array"));
  EXPECT_THAT(of([&] { keys.strings("ids", 9); }), HasSubstr("an array of strings"));
  EXPECT_THAT(of([&] { keys.strings("words", 2); }), HasSubstr("3 elements, at most 2"));
  EXPECT_THAT(of([&] { keys.numbers("n", 2); }), HasSubstr("an array"));
  EXPECT_THAT(of([&] { keys.boolean("n", false); }), HasSubstr("a bool"));
}

TEST(Gguf, RefusesAFileThatIsCutAnywhere) {
  const std::string whole = small().bytes();
  EXPECT_EQ(parse_error(whole), "");
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_THAT(parse_error(whole.substr(0, size)), HasSubstr("f.gguf")) << size;
}

TEST(Gguf, RefusesOtherFilesAndVersions) {
  std::string bytes = small().bytes();
  bytes[0] = 'g';
  EXPECT_THAT(parse_error(bytes), HasSubstr("not a GGUF file"));
  bytes = small().bytes();
  bytes[4] = 1;
  EXPECT_THAT(parse_error(bytes), HasSubstr("version 1"));
  bytes[4] = 2;
  EXPECT_EQ(parse_error(bytes), "");
  bytes[4] = 0, bytes[7] = 3;
  EXPECT_THAT(parse_error(bytes), HasSubstr("big-endian"));
}

TEST(Gguf, RefusesCountsThatTheFileCannotHold) {
  std::string bytes = small().bytes();
  bytes[12] = 1;  // 2^32 more tensors
  EXPECT_THAT(parse_error(bytes), HasSubstr("at most 65536"));
  GgufWriter file;
  file.raw("a", 9, std::string("\x08\0\0\0", 4) + std::string(7, '\0') + '\x10');
  EXPECT_THAT(parse_error(file.bytes()), HasSubstr("1152921504606846976 values"));
  GgufWriter string;
  string.raw("a", 8, std::string(8, '\xff'));
  EXPECT_THAT(parse_error(string.bytes()), HasSubstr("18446744073709551615 bytes"));
}

TEST(Gguf, RefusesWrongTensors) {
  const auto error = [](uint32_t type, const std::vector<uint64_t>& dims, size_t bytes) {
    GgufWriter file;
    file.tensor("w", type, dims, std::string(bytes, 'w'));
    return parse_error(file.bytes());
  };
  EXPECT_EQ(error(2, {32}, 18), "");
  EXPECT_EQ(error(0, {}, 4), "");
  EXPECT_THAT(error(2, {33}, 36), HasSubstr("no whole blocks of 32"));
  EXPECT_THAT(error(2, {32}, 17), AllOf(HasSubstr("\"w\""), HasSubstr("18 bytes")));
  EXPECT_THAT(error(4, {32}, 18), HasSubstr("type is 4"));
  EXPECT_THAT(error(0, {1, 1, 1, 1, 1}, 4), HasSubstr("5 dimensions"));
  EXPECT_THAT(error(0, {uint64_t{1} << 62, 4}, 4), HasSubstr("2^63"));
  EXPECT_THAT(error(0, {0, uint64_t{1} << 62, 4}, 4), HasSubstr("2^63"));
  EXPECT_THAT(error(0, {uint64_t{1} << 63}, 4), HasSubstr("dimension 0"));

  GgufWriter twice;
  twice.tensor("w", 0, {1}, "1234");
  twice.tensor("w", 0, {1}, "1234");
  EXPECT_THAT(parse_error(twice.bytes()), HasSubstr("twice"));
  GgufWriter odd;
  odd.u32("general.alignment", 64);
  odd.tensor("v", 0, {1}, "1234");
  odd.tensor("w", 0, {1}, "1234");
  EXPECT_EQ(parse_error(odd.bytes(64)), "");
  EXPECT_THAT(parse_error(odd.bytes(32)), HasSubstr("a multiple of 64"));
  GgufWriter no_power;
  no_power.u32("general.alignment", 48);
  EXPECT_THAT(parse_error(no_power.bytes()), HasSubstr("power of two"));

  std::string overlap = small().bytes();  // the second tensor's offset is the first's
  const size_t offset = overlap.find(std::string("v\1\0\0\0\5", 6)) + 1 + 4 + 8 + 4;
  overlap[offset] = 0;
  EXPECT_THAT(parse_error(overlap), HasSubstr("where another one is"));
}

TEST(Gguf, JoinsTheFilesOfASplitModel) {
  const TempDir dir;
  const auto part = [&](int number, uint32_t said, const std::string& tensor) {
    GgufWriter file;
    file.raw("split.no", 2, std::string{static_cast<char>(said), '\0'});
    file.raw("split.count", 2, std::string{'\2', '\0'});
    file.raw("split.tensors.count", 5, std::string{'\2', '\0', '\0', '\0'});
    file.tensor(tensor, 0, {1}, "1234");
    write_file(dir / fmt::format("m-{:05}-of-00002.gguf", number), file.bytes());
  };
  const auto open = [&](const char* name) { return error_of([&] { GgufFile(dir / name); }); };
  part(1, 0, "a");
  EXPECT_THAT(open("m-00001-of-00002.gguf"),
              AllOf(HasSubstr("part 2 of 2 is missing"), EndsWith("m-00002-of-00002.gguf")));
  part(2, 1, "b");
  const GgufFile file(dir / "m-00001-of-00002.gguf");
  ASSERT_NE(file.find("b"), nullptr);
  EXPECT_THAT(*file.find("b")->file, HasSubstr("m-00002-of-00002.gguf"));
  EXPECT_EQ(file.find("c"), nullptr);
  EXPECT_THAT(open("m-00002-of-00002.gguf"),
              EndsWith("give the first, " + (dir / "m-00001-of-00002.gguf").string()));
  part(2, 1, "a");
  EXPECT_THAT(open("m-00001-of-00002.gguf"), HasSubstr("another part"));
  part(2, 0, "b");
  EXPECT_THAT(open("m-00001-of-00002.gguf"), HasSubstr("expected 2 of 2"));
}

}  // namespace
}  // namespace ei::test
