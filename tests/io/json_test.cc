#include "ei/io/json.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include "tests/support/files.h"

namespace ei::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(Json, RefusesWhatIsNotJsonAndSaysWhere) {
  for (const char* text : {"", "{", "{\"a\":}", "[1,2", "{} x", "nul", "\"\xff\"", "{\"a\":01}"})
    EXPECT_THAT(error_of([&] { parse_json(text, "a.json"); }),
                AllOf(HasSubstr("a.json"), HasSubstr("not valid JSON")))
        << text;
  EXPECT_THAT(error_of([] { parse_json(R"({"x":{"a":1,"b":2,"a":3}})", "a.json"); }),
              AllOf(HasSubstr("a.json"), HasSubstr("duplicate key \"a\"")));
}

TEST(Json, SameKeyInDifferentObjectsIsFine) {
  EXPECT_EQ(parse_json(R"({"a":{"a":1},"b":[{"a":2},{"a":3}]})", "")["b"][1]["a"], 3);
}

TEST(Json, DepthAndSizeAreLimited) {
  EXPECT_EQ(error_of([] { parse_json(std::string(64, '[') + std::string(64, ']'), "a.json"); }),
            "");
  // Far deeper than the stack of a recursive reader would bear.
  EXPECT_THAT(error_of([] { parse_json(std::string(1 << 20, '['), "a.json"); }),
              HasSubstr("nested deeper than 64"));
  EXPECT_THAT(error_of([] { parse_json("[1,2,3]", "a.json", {.max_bytes = 6, .max_depth = 64}); }),
              HasSubstr("7 bytes of JSON, at most 6"));
}

TEST(Fields, NameTheFieldTheTypeAndTheValue) {
  const Json json = parse_json(
      R"({"n":5,"x":0.5,"s":"text","b":true,"null":null,"big":18446744073709551615,"neg":-1})", "");
  const Fields fields(json, "a.json");
  EXPECT_EQ(fields.integer("n", 0, 5), 5);
  EXPECT_EQ(fields.integer("null", 0, 5, 3), 3);
  EXPECT_EQ(fields.number("n", 0, 10), 5.0);
  EXPECT_FALSE(fields.has("null"));
  EXPECT_THAT(error_of([&] { fields.integer("n", 0, 4); }),
              AllOf(HasSubstr("a.json"), HasSubstr("\"n\" is 5"), HasSubstr("from 0 to 4")));
  EXPECT_THAT(error_of([&] { fields.integer("x", 0, 4); }), HasSubstr("\"x\" is 0.5"));
  EXPECT_THAT(error_of([&] { fields.integer("s", 0, 4); }), HasSubstr("\"s\" is \"text\""));
  EXPECT_THAT(error_of([&] { fields.integer("big", 0, INT64_MAX); }), HasSubstr("\"big\""));
  EXPECT_THAT(error_of([&] { fields.integer("neg", 0, 4, 2); }), HasSubstr("\"neg\" is -1"));
  EXPECT_THAT(error_of([&] { fields.integer("gone", 0, 4); }), HasSubstr("\"gone\" is missing"));
  EXPECT_THAT(error_of([&] { fields.boolean("n", true); }), HasSubstr("true or false"));
  EXPECT_THAT(error_of([&] { fields.string("b"); }), HasSubstr("expected a string"));
  EXPECT_THAT(error_of([] { Fields(Json(7), "a.json"); }), HasSubstr("expected a JSON object"));
}

TEST(ReadFile, SaysWhatIsWrong) {
  const TempDir dir;
  write_file(dir / "f", std::string("a\0b", 3));
  EXPECT_EQ(read_file(dir / "f"), std::string("a\0b", 3));
  EXPECT_THAT(error_of([&] { read_file(dir / "f", 2); }), HasSubstr("3 bytes, at most 2"));
  EXPECT_THAT(error_of([&] { read_file(dir / "gone"); }),
              AllOf(HasSubstr("gone"), HasSubstr("no such file")));
  EXPECT_THAT(error_of([&] { read_file(dir.path()); }), HasSubstr("not a regular file"));
  ASSERT_EQ(mkfifo((dir / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(error_of([&] { read_file(dir / "pipe"); }), HasSubstr("not a regular file"));
  std::filesystem::create_symlink("loop", dir / "loop");
  EXPECT_THAT(error_of([&] { read_file(dir / "loop"); }), HasSubstr("loop"));
}

}  // namespace
}  // namespace ei::test
