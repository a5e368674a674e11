// The shipped model answers questions over generated documents, under every kind of policy.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <set>

#include "tests/end_to_end/documents.h"
#include "tests/support/files.h"
#include "tests/support/needle_gguf.h"

namespace ei::test {
namespace {

// Keys that share a word (proud-violin, tender-violin) are mistaken for each other now and then
// when reading is sparse: `eval needle` measures that. Here no two of a document share one.
bool share_no_word(const std::vector<eval::Needle>& needles) {
  std::set<std::string> words;
  for (const eval::Needle& needle : needles) {
    const size_t dash = needle.key.find('-');
    words.insert({needle.key.substr(0, dash), needle.key.substr(dash + 1)});
  }
  return words.size() == 2 * needles.size();
}

// A document is read once by each prefill policy; of every other question only the end is.
constexpr int64_t kPrefixBytes = int64_t{1} << 30;

struct NeedleCase {
  int64_t n_tokens;
  DType kv_type = DType::kBF16;
  std::optional<WeightFormat> weights = {};  // converted to
};
class NeedleTest : public testing::TestWithParam<NeedleCase> {};

TEST_P(NeedleTest, AnswersOneValueQuestions) {
  const auto& [n_tokens, kv_type, weights] = GetParam();
  const bool quantized = kv_type == DType::kQ8 || weights;  // the CPU's alone
  Engine engine(
      kNeedle,
      {.device = quantized ? Device::kCpu : Device::kAuto, .kv_type = kv_type, .weights = weights});
  // Reading is most of the time: the longest document is read once by each policy.
  const int n_documents = n_tokens > 8192 ? 1 : 2;
  int n_read = 0;
  for (uint64_t seed = 1; n_read < n_documents; ++seed) {
    const eval::Document document = make_document(engine, n_tokens, seed);
    if (!share_no_word(document.needles)) continue;
    ++n_read;
    Session session(engine, kPrefixBytes);
    for (const auto& [name, request] : policies()) {
      const bool compresses = name == "entropy and latent";
      for (const eval::Needle& needle : document.needles) {
        SCOPED_TRACE(name + ", seed " + std::to_string(seed) + ", " + needle.fact());
        const Generation got = ask(session, document, needle, request);
        EXPECT_THAT(got.text, testing::HasSubstr(needle.value));
        EXPECT_EQ(got.finish_reason, FinishReason::kStop);
        EXPECT_GE(got.prompt_tokens, n_tokens);
        EXPECT_EQ(got.kv.compressed, compresses);
        if (name == "dense") {
          EXPECT_EQ(got.sparsity.density, 1);
        } else if (n_tokens > 8192 && got.cached_tokens == 0) {
          EXPECT_LT(got.sparsity.density, 0.9);
        }
        if (compresses) {
          EXPECT_LT(got.kv.bytes, got.kv.bytes_full / 2);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tokens, NeedleTest,
                         testing::Values(NeedleCase{.n_tokens = 4096,
                                                    .weights = WeightFormat::kQ8_0},
                                         NeedleCase{.n_tokens = 8192, .kv_type = DType::kQ8},
                                         NeedleCase{.n_tokens = 16384}),
                         [](const auto& info) { return std::to_string(info.param.n_tokens); });

// Greedy text is the same for any number of threads and any chunk.
TEST(NeedleInvarianceTest, ThreadsAndChunksChangeNothing) {
  std::map<std::string, std::string> want;
  for (const auto& [threads, chunk] :
       std::vector<std::pair<int, int64_t>>{{2, 2048}, {1, 2048}, {2, 512}, {2, 8192}}) {
    Engine engine(kNeedle, {.threads = threads, .chunk = chunk});
    const eval::Document document = make_document(engine, 9000, 3);
    Session session(engine, kPrefixBytes);
    for (auto [name, request] : policies()) {
      request.ignore_eos = true;  // on into free text, where small differences would show
      const Generation got = ask(session, document, document.needles[3], request);
      const auto [at, is_first] = want.emplace(name, got.text);
      EXPECT_EQ(got.text, at->second) << name << ", " << threads << " threads, chunk " << chunk;
    }
  }
}

// With another tokenizer's description, RoPE's dimensions in another order and weights in blocks.
TEST(NeedleGguf, AnswersAsTheDirectoryDoes) {
  const TempDir dir;
  Engine directory(kNeedle, {.device = Device::kCpu});
  const eval::Document document = make_document(directory, 2048, 1);
  for (const uint32_t type : {kGgufQ8_0, kGgufQ4_0}) {
    write_file(dir / "needle.gguf", needle_gguf(type));
    Engine file(dir / "needle.gguf", {.device = Device::kCpu});
    EXPECT_EQ(file.tokenize(document.text), directory.tokenize(document.text));
    Session session(file);
    const Generation got = ask(session, document, document.needles[1], {});
    EXPECT_THAT(got.text, testing::HasSubstr(document.needles[1].value)) << type;
  }
}

}  // namespace
}  // namespace ei::test
