// Names, which files a model is, and hashes; tests/hub/hub_test.py lets the program pull.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "apps/hub/digest.h"
#include "apps/hub/files.h"
#include "apps/hub/name.h"
#include "tests/support/files.h"

namespace ei::hub {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(NameTest, PartsOfAName) {
  const auto parts = [](std::string_view text) {
    const std::optional<ModelName> name = parse_name(text);
    return name ? name->repo + " " + name->revision + " " + name->tag : "none";
  };
  EXPECT_EQ(parts("Qwen/Qwen2.5-7B-Instruct"), "Qwen/Qwen2.5-7B-Instruct main ");
  EXPECT_EQ(parts("a/b:Q4_K_M"), "a/b main Q4_K_M");
  EXPECT_EQ(parts("a/b@refs/pr/1:BF16/x.gguf"), "a/b refs/pr/1 BF16/x.gguf");
  for (const char* path : {"", "a", "/a/b", "./b", "../b", "a/b/c", "a/", "~/b", "a/b.gguf",
                           "a/b:", "a/b@", "a/b@../x", "a/b:../x", "a--b/c", "a/b c", "a/-b"})
    EXPECT_EQ(parts(path), "none") << path;
  EXPECT_EQ(parse_name("a/b@v1:Q8_0")->str(), "a/b@v1:Q8_0");
  EXPECT_EQ(parse_name("a/b@main")->str(), "a/b");
}

TEST(FilesTest, ModelsInGguf) {
  const std::vector<RepoFile> files = {{"m-q4_0.gguf", 4},           {"m-00002-of-00003.gguf", 2},
                                       {"m-00001-of-00003.gguf", 1}, {"UD-Q8_0/m-UD-Q8_0.gguf", 8},
                                       {"mmproj-m-F16.gguf", 9},     {"m.Q8_0.gguf", 7},
                                       {"-00001-of-00001.gguf", 0},  {"config.json", 3}};
  std::vector<std::string> found;
  for (const GgufModel& m : gguf_models(files))
    found.push_back(fmt::format("{} {} {}", m.tag, m.n_bytes(), m.complete ? "whole" : "parts"));
  EXPECT_THAT(found, ElementsAre("00001 0 whole", "Q8_0 8 whole", "M 3 parts", "Q4_0 4 whole",
                                 "Q8_0 7 whole"));
  EXPECT_EQ(find_gguf(files, {"a/b", "main", "q4_0"})->n_bytes(), 4);
  EXPECT_EQ(find_gguf(files, {"a/b", "main", "m.Q8_0.gguf"})->n_bytes(), 7);
  EXPECT_FALSE(find_gguf(files, {"a/b", "main", "Q5_0"}));
  EXPECT_THAT(test::error_of([&] {
                find_gguf(files, {"a/b", "main", "Q8_0"});
              }),
              HasSubstr("a/b:m.Q8_0.gguf"));
}

TEST(FilesTest, WeightsByTheIndex) {
  const test::TempDir dir;
  const auto write = [&](const std::string& map) {
    test::write_file(dir / "model.safetensors.index.json", R"({"weight_map": )" + map + "}");
  };
  const std::vector<RepoFile> files = {{"model.safetensors.index.json", 1}, {"b", 2}, {"c", 3}};
  write(R"({"x": "b", "y": "c", "z": "b"})");
  EXPECT_EQ(weight_files(files, dir.path()).size(), 2u);
  for (const auto& [map, words] : std::vector<std::pair<std::string, std::string>>{
           {"[]", "not an object"}, {R"({"x": 1})", "file's name"}, {R"({"x": "../b"})", "../b"}}) {
    write(map);
    EXPECT_THAT(test::error_of([&] { weight_files(files, dir.path()); }), HasSubstr(words));
  }
  EXPECT_TRUE(weight_files({}, dir.path()).empty());
}

// As sha256sum and git hash-object have them.
TEST(DigestTest, HashesOfFiles) {
  const auto hash = [](size_t n_hex) {
    Digest digest(std::string(n_hex, '0'), 6);
    digest.add("hel");
    digest.add("lo\n");
    return digest.hex();
  };
  EXPECT_EQ(hash(64), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
  EXPECT_EQ(hash(40), "ce013625030ba8dba906f756967f9e9ca394464a");
  for (const std::string etag : {"", "abc", "../../../../../../../../../../../x", "G"})
    EXPECT_THAT(test::error_of([&] { Digest(etag, 6); }), HasSubstr("etag")) << etag;
}

}  // namespace
}  // namespace ei::hub
