#include "ei/io/safetensors.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <cstring>

#include "tests/support/files.h"

namespace ei::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TensorMap parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes)), "f.safetensors");
}

std::string error_of_header(std::string_view header, size_t data_bytes) {
  return error_of([&] { parse(safetensors_bytes(header, std::string(data_bytes, 'x'))); });
}
std::string error_of_tensors(const Json& header, size_t data_bytes) {
  return error_of_header(header.dump(), data_bytes);
}

TEST(Safetensors, ReadsEveryKindOfTensor) {
  // Not in the order of the file; scalars, empty tensors and padding of the header are allowed.
  const Json header = {
      {"__metadata__", {{"format", "pt"}}},          {"b", tensor_json("F32", {2, 3}, 6, 30)},
      {"a", tensor_json("BF16", {3}, 0, 6)},         {"scalar", tensor_json("I64", {}, 30, 38)},
      {"empty", tensor_json("F16", {4, 0}, 30, 30)}, {"packed", tensor_json("F4", {6}, 38, 41)}};
  std::string data(41, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i);
  const std::string bytes = safetensors_bytes(std::string_view(header.dump() + "     "), data);
  const TensorMap tensors = parse(bytes);
  ASSERT_EQ(tensors.size(), 5u);
  const TensorInfo& b = tensors.at("b");
  EXPECT_EQ(b.dtype, "F32");
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b.size(), 6);
  EXPECT_EQ(b.data.size(), 24u);
  EXPECT_EQ(static_cast<int>(b.data[0]), 6);
  EXPECT_EQ(tensors.at("scalar").size(), 1);
  EXPECT_EQ(tensors.at("empty").data.size(), 0u);
  EXPECT_EQ(tensors.at("packed").data.size(), 3u);
  EXPECT_EQ(parse(safetensors_bytes(std::string_view("{}"), "")).size(), 0u);
}

TEST(Safetensors, RefusesABrokenHeader) {
  EXPECT_THAT(error_of([] { parse(""); }), AllOf(HasSubstr("f.safetensors"), HasSubstr("0 bytes")));
  EXPECT_THAT(error_of([] { parse("1234567"); }), HasSubstr("too short"));
  EXPECT_THAT(error_of([] { parse(std::string(8, '\xff') + "{}"); }),
              HasSubstr("18446744073709551615 bytes"));
  // A header that ends behind the file: truncated anywhere.
  const std::string whole = safetensors_bytes(Json{{"a", tensor_json("U8", {4}, 0, 4)}}, "1234");
  EXPECT_EQ(error_of([&] { parse(whole); }), "");
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_THAT(error_of([&] { parse(whole.substr(0, size)); }), HasSubstr("f.safetensors"))
        << size;
  EXPECT_THAT(error_of([&] { parse(whole + "5"); }), HasSubstr("5 bytes of data"));
  EXPECT_THAT(error_of_header(" {}", 0), HasSubstr("does not start with '{'"));
  EXPECT_THAT(error_of_header("{]", 0), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of_header(R"({"a":3})", 0), HasSubstr("expected a JSON object"));
}

TEST(Safetensors, RefusesAHugeHeaderBeforeReadingIt) {
  uint64_t size = (uint64_t{32} << 20) + 1;
  std::string bytes(8 + size, ' ');
  std::memcpy(bytes.data(), &size, 8);
  bytes[8] = '{';
  EXPECT_THAT(error_of([&] { parse(bytes); }), HasSubstr("at most 33554432 are read"));
}

TEST(Safetensors, RefusesDuplicateNames) {
  EXPECT_THAT(error_of_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                              R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                              2),
              HasSubstr("duplicate key \"a\""));
}

TEST(Safetensors, RefusesSpansThatOverlapLeaveHolesOrDoNotFit) {
  const auto pair = [](uint64_t begin, uint64_t end) {
    return Json{{"a", tensor_json("U8", {4}, 0, 4)},
                {"b", tensor_json("U8", {int64_t(end - begin)}, begin, end)}};
  };
  EXPECT_EQ(error_of_tensors(pair(4, 8), 8), "");
  EXPECT_THAT(error_of_tensors(pair(3, 8), 8), AllOf(HasSubstr("\"b\""), HasSubstr("overlaps")));
  EXPECT_THAT(error_of_tensors(pair(0, 4), 4), HasSubstr("overlaps"));
  EXPECT_THAT(error_of_tensors(pair(5, 8), 8), HasSubstr("nothing describes the bytes between"));
  EXPECT_THAT(error_of_tensors(pair(4, 8), 9), HasSubstr("9 bytes of data"));
  EXPECT_THAT(error_of_tensors(pair(4, 8), 7),
              AllOf(HasSubstr("\"b\""), HasSubstr("[4, 8]"), HasSubstr("7 bytes")));
  EXPECT_THAT(error_of_tensors({{"a", tensor_json("U8", {4}, 4, 8)}}, 8),
              HasSubstr("starts at byte 4 of the data, expected 0"));
  EXPECT_THAT(error_of_tensors({{"a", tensor_json("U8", {4}, 4, 0)}}, 4), HasSubstr("[4, 0]"));
  EXPECT_THAT(error_of_header("{}", 1), HasSubstr("1 bytes of data, but the tensors describe 0"));
}

TEST(Safetensors, RefusesShapesThatAreWrong) {
  const auto of_shape = [](const Json& shape) {
    return error_of_tensors({{"a", {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {0, 4}}}}},
                            4);
  };
  EXPECT_EQ(of_shape({1}), "");
  EXPECT_THAT(of_shape({2}), AllOf(HasSubstr("spans 4 bytes"), HasSubstr("take 8")));
  EXPECT_THAT(of_shape({-1}), AllOf(HasSubstr("\"shape\""), HasSubstr("-1")));
  EXPECT_THAT(of_shape({1.5}), HasSubstr("1.5"));
  EXPECT_THAT(of_shape({"1"}), HasSubstr("\"shape\""));
  EXPECT_THAT(of_shape(1), HasSubstr("expected a list"));
  EXPECT_THAT(of_shape(std::vector<int>(17, 1)), HasSubstr("17 dimensions"));
  EXPECT_THAT(of_shape({UINT64_MAX}), HasSubstr("18446744073709551615"));
  // Products that wrap around to 1 in 64 bits.
  EXPECT_THAT(of_shape({int64_t{1} << 32, int64_t{1} << 32}), HasSubstr("more than 2^63 bits"));
  EXPECT_THAT(of_shape({INT64_MAX, 3}), HasSubstr("more than 2^63 bits"));
  EXPECT_THAT(of_shape({int64_t{1} << 57}), HasSubstr("take"));
  EXPECT_THAT(error_of_tensors({{"a", tensor_json("F4", {3}, 0, 2)}}, 2),
              HasSubstr("whole number of bytes"));
}

TEST(Safetensors, RefusesFieldsThatAreWrong) {
  const auto with = [](const char* key, const Json& value) {
    Json tensor = tensor_json("F32", {1}, 0, 4);
    tensor[key] = value;
    return error_of_tensors({{"a\x01", tensor}}, 4);
  };
  EXPECT_THAT(with("dtype", "F31"), AllOf(HasSubstr("a\\u0001"), HasSubstr("\"F31\"")));
  EXPECT_THAT(with("dtype", 32), HasSubstr("\"dtype\" is 32"));
  EXPECT_THAT(with("dtype", nullptr), HasSubstr("\"dtype\" is missing"));
  EXPECT_THAT(with("data_offsets", Json::array({0})), HasSubstr("has 1 numbers"));
  EXPECT_THAT(with("data_offsets", Json::array({0, -4})), HasSubstr("-4"));
  EXPECT_THAT(with("data_offsets", Json::array({0, 4.5})), HasSubstr("4.5"));
  EXPECT_THAT(with("data_offsets", Json::array({UINT64_MAX - 3, UINT64_MAX})), HasSubstr("184467"));
  EXPECT_THAT(with("data_offsets", "0"), HasSubstr("expected a list"));
}

TEST(Safetensors, LimitsHowMuchAHeaderMayDescribe) {
  EXPECT_THAT(error_of_tensors({{std::string(513, 'n'), tensor_json("U8", {0}, 0, 0)}}, 0),
              HasSubstr("513 bytes"));
  Json many = Json::object();
  for (int i = 0; i <= 65536; ++i) many[std::to_string(i)] = 0;
  EXPECT_THAT(error_of_tensors(many, 0), HasSubstr("at most 65536"));
}

TEST(SafetensorsFile, SaysWhatIsWrongWithTheFile) {
  const TempDir dir;
  const std::string bytes = safetensors_bytes(Json{{"a", tensor_json("U8", {4}, 0, 4)}}, "abcd");
  write_file(dir / "f", bytes);
  SafetensorsFile file(dir / "f");
  const SafetensorsFile moved = std::move(file);
  EXPECT_EQ(static_cast<char>(moved.tensors().at("a").data[3]), 'd');
  moved.check_size();
  std::filesystem::resize_file(dir / "f", bytes.size() - 1);
  EXPECT_THAT(error_of([&] { moved.check_size(); }), HasSubstr("its size changed"));

  EXPECT_THAT(error_of([&] { SafetensorsFile(dir / "gone"); }), HasSubstr("gone"));
  EXPECT_THAT(error_of([&] { SafetensorsFile(dir.path()); }), HasSubstr("not a regular file"));
  ASSERT_EQ(mkfifo((dir / "pipe").c_str(), 0600), 0);
  EXPECT_THAT(error_of([&] { SafetensorsFile(dir / "pipe"); }), HasSubstr("not a regular file"));
  write_file(dir / "pointer",
             "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n");
  EXPECT_THAT(error_of([&] { SafetensorsFile(dir / "pointer"); }),
              AllOf(HasSubstr("pointer"), HasSubstr("git lfs pull")));
  EXPECT_THAT(error_of([&] { read_json(dir / "pointer"); }), HasSubstr("git lfs pull"));
  write_file(dir / "empty", "");
  EXPECT_THAT(error_of([&] { SafetensorsFile(dir / "empty"); }), HasSubstr("0 bytes"));
}

class CheckpointTest : public testing::Test {
 protected:
  // A shard with tensors of one byte each.
  void shard(const std::string& file, const std::vector<std::string>& names) {
    Json header = Json::object();
    for (size_t i = 0; i < names.size(); ++i) header[names[i]] = tensor_json("U8", {1}, i, i + 1);
    write_file(dir_ / file, safetensors_bytes(header, std::string(names.size(), file[0])));
  }
  void index(const Json& weight_map) {
    write_file(dir_ / "model.safetensors.index.json", Json{{"weight_map", weight_map}}.dump());
  }
  std::string error() {
    return error_of([&] { Checkpoint checkpoint(dir_.path()); });
  }

  const TempDir dir_;
};

TEST_F(CheckpointTest, ReadsASingleFileOrShards) {
  shard("x.safetensors", {"a", "c"});
  shard("y.safetensors", {"b"});
  index({{"a", "x.safetensors"}, {"b", "y.safetensors"}, {"c", "x.safetensors"}});
  const Checkpoint made(dir_.path());
  Checkpoint shards = Checkpoint(dir_.path());
  EXPECT_EQ(shards.entries().size(), 3u);
  ASSERT_NE(shards.find("b"), nullptr);
  EXPECT_EQ(static_cast<char>(shards.find("b")->tensor->data[0]), 'y');
  EXPECT_THAT(*shards.find("c")->file, HasSubstr("x.safetensors"));
  EXPECT_EQ(shards.find("d"), nullptr);

  shard("model.safetensors", {"d"});  // comes before an index
  EXPECT_NE(Checkpoint(dir_.path()).find("d"), nullptr);
}

TEST_F(CheckpointTest, RefusesShardNamesThatArePaths) {
  for (const char* name : {"/etc/passwd", "../x.safetensors", "sub/x.safetensors",
                           "/tmp/x.safetensors", "..", "", "x.bin", "x..safetensors"}) {
    index({{"a", name}});
    EXPECT_THAT(error(), AllOf(HasSubstr("index.json"), HasSubstr("same directory"))) << name;
  }
  index({{"a", std::string("x\0.safetensors", 14)}});
  EXPECT_THAT(error(), HasSubstr("same directory"));
}

TEST_F(CheckpointTest, RefusesAnIndexThatDoesNotMatchTheShards) {
  shard("x.safetensors", {"a", "c"});
  shard("y.safetensors", {"b"});
  index({{"a", "x.safetensors"}, {"b", "x.safetensors"}, {"c", "x.safetensors"}});
  EXPECT_THAT(error(), AllOf(HasSubstr("x.safetensors: tensor \"b\" is missing")));
  index({{"a", "z.safetensors"}});
  EXPECT_THAT(error(), HasSubstr("shard \"z.safetensors\" is missing"));
}

// A tied head that was saved all the same, a tensor in two shards.
TEST_F(CheckpointTest, TakesWhatTheIndexNamesAndNothingElse) {
  shard("x.safetensors", {"a", "c"});
  shard("y.safetensors", {"a", "b"});
  index({{"a", "x.safetensors"}, {"b", "y.safetensors"}});
  const Checkpoint checkpoint(dir_.path());
  EXPECT_EQ(checkpoint.entries().size(), 2u);
  EXPECT_EQ(static_cast<char>(checkpoint.find("a")->tensor->data[0]), 'x');
  EXPECT_EQ(checkpoint.find("c"), nullptr);
}

TEST_F(CheckpointTest, RefusesABrokenIndexOrNone) {
  EXPECT_THAT(error(), AllOf(HasSubstr("neither model.safetensors nor"), Not(HasSubstr("pickle"))));
  write_file(dir_ / "pytorch_model-00001-of-00002.bin", "PK");
  EXPECT_THAT(error(), HasSubstr("pytorch_model-00001-of-00002.bin is a pickle"));
  write_file(dir_ / "model.safetensors.index.json", "{}");
  EXPECT_THAT(error(), HasSubstr("\"weight_map\" is missing"));
  index(Json::array({"a"}));
  EXPECT_THAT(error(), HasSubstr("expected a JSON object"));
  index({{"a", 3}});
  EXPECT_THAT(error(), AllOf(HasSubstr("\"a\" is 3"), HasSubstr("expected a string")));
}

}  // namespace
}  // namespace ei::test
