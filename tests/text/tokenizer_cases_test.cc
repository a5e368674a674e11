// Ids and texts of PyPI's tokenizers and sentencepiece (tools/make_tokenizer_cases.py), and of
// Qwen2's own test cases: all exact.

#include <gmock/gmock.h>

#include <fstream>
#include <sstream>

#include "ei/base/fail.h"
#include "ei/text/byte_level.h"
#include "ei/text/sentencepiece.h"
#include "tests/text/cases.h"

namespace ei::test {
namespace {

using testing::ElementsAreArray;
using Ids = std::vector<int32_t>;

std::string stream(const Tokenizer& tokenizer, const Ids& ids, bool skip_special) {
  StreamDecoder decoder(tokenizer, skip_special);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = decoder.push(id);
    EXPECT_NO_THROW(require_utf8(piece, "a piece of the stream"));
    text += piece;
  }
  return text + decoder.finish();
}

// Hugging Face parses special tokens in the text and shows them; SentencePiece does neither.
void expect_cases(const Tokenizer& tokenizer, const std::string& name, bool parse_special,
                  bool add_bos = false) {
  for (const Json& item : read_json(text_data() / (name + ".json"))) {
    const auto text = item.at("text").get<std::string>();
    const auto ids = item.at("ids").get<Ids>();
    SCOPED_TRACE(item.at("text").dump(-1, ' ', true));
    const TextPiece piece{text, parse_special};
    EXPECT_THAT(tokenizer.encode(std::span(&piece, 1), add_bos), ElementsAreArray(ids));
    const auto some = item.at("some_ids").get<Ids>();
    EXPECT_EQ(tokenizer.decode(some, !parse_special), item.at("decoded").get<std::string>())
        << testing::PrintToString(some);
    EXPECT_EQ(stream(tokenizer, some, !parse_special), item.at("decoded").get<std::string>());
  }
}

TEST(TokenizerCases, Needle) {
  const auto tokenizer = load_tokenizer(kNeedle);
  expect_cases(*tokenizer, "needle-8m", /*parse_special=*/true);
  EXPECT_EQ(tokenizer->vocab_size(), 4096);
  EXPECT_EQ(tokenizer->bos_id(), 0);
  EXPECT_EQ(tokenizer->eos_id(), 3);
  EXPECT_TRUE(tokenizer->is_special(1));
  EXPECT_FALSE(tokenizer->is_special(4));
  EXPECT_EQ(tokenizer->token_id("<|assistant|>"), 2);
  EXPECT_EQ(tokenizer->token_id("<|nobody|>"), std::nullopt);
  EXPECT_EQ(tokenizer->encode("a", true), tokenizer->encode("a", false));  // its file adds no BOS
}

TEST(TokenizerCases, Qwen2) {
  EI_SKIP_WITHOUT(tokenizers_dir() / "qwen2");
  const auto tokenizer = load_tokenizer(tokenizers_dir() / "qwen2");
  expect_cases(*tokenizer, "qwen2", /*parse_special=*/true);
  EXPECT_EQ(tokenizer->bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer->eos_id(), 151645);
  EXPECT_EQ(tokenizer->token_id("Ġthe"), 279);
  EXPECT_EQ(tokenizer->token_bytes(279), " the");
}

TEST(TokenizerCases, Qwen2OwnCases) {
  EI_SKIP_WITHOUT(tokenizers_dir() / "qwen2");
  const auto tokenizer = load_tokenizer(tokenizers_dir() / "qwen2");
  const std::string inputs = read_file(tokenizers_dir() / "qwen2" / "cases.inp");
  const std::string outputs = read_file(tokenizers_dir() / "qwen2" / "cases.out");
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::istringstream lines(outputs);
  size_t begin = 0;
  int n_cases = 0;
  for (std::string line; std::getline(lines, line); ++n_cases) {
    const size_t end = inputs.find(separator, begin);
    ASSERT_NE(end, std::string::npos) << "fewer inputs than outputs";
    std::istringstream numbers(line);
    const Ids ids{std::istream_iterator<int32_t>(numbers), {}};
    const std::string text = inputs.substr(begin, end - begin);
    EXPECT_EQ(tokenizer->encode(text, false), ids) << text;
    EXPECT_EQ(tokenizer->decode(ids, false), text);
    begin = end + separator.size();
  }
  EXPECT_EQ(begin, inputs.size()) << "more inputs than outputs";
  EXPECT_GE(n_cases, 40);
}

TEST(TokenizerCases, MistralV1) {
  EI_SKIP_WITHOUT(tokenizers_dir() / "mistral-v1");
  const auto tokenizer = load_tokenizer(tokenizers_dir() / "mistral-v1");
  expect_cases(*tokenizer, "mistral-v1", /*parse_special=*/false);
  EXPECT_EQ(tokenizer->encode("<s>Hi</s> x", true), (Ids{1, 1, 15359, 2, 28705, 1318}));
  EXPECT_EQ(tokenizer->decode(Ids{1, 15359, 2, 15359}, false), "<s>Hi</s>Hi");
  EXPECT_EQ(tokenizer->decode(Ids{1, 15359, 2, 15359}, true), "Hi Hi");
  EXPECT_EQ(tokenizer->token_id("<0x0A>"), 13);
}

// Replacement rules, user-defined symbols, spaces trimmed.
TEST(TokenizerCases, SmallSentencePiece) {
  const auto tokenizer =
      make_sentencepiece(read_file(text_data() / "small.model"), {}, "small.model");
  expect_cases(*tokenizer, "small.model.cases", /*parse_special=*/false);
}

// No byte fallback; UNUSED pieces, which fall into what they were merged from; a character that
// is in pieces and none itself.
TEST(TokenizerCases, OddSentencePiece) {
  const auto tokenizer = make_sentencepiece(read_file(text_data() / "odd.model"), {}, "odd.model");
  expect_cases(*tokenizer, "odd.model.cases", /*parse_special=*/false);
}

// ignore_merges, a BOS template, added tokens with every flag.
TEST(TokenizerCases, SmallTokenizerJson) {
  const auto path = text_data() / "small.tokenizer.json";
  const auto tokenizer = make_byte_level(read_json(path), {}, path.string());
  expect_cases(*tokenizer, "small.tokenizer.cases", /*parse_special=*/true, /*add_bos=*/true);
}

// Digits, Split with all behaviours, ByteLevel with its own words, and vocabularies that lack
// bytes.
TEST(TokenizerCases, PreTokenizers) {
  const Json cases = read_json(text_data() / "pre_tokenizers.json");
  ASSERT_GE(cases.size(), 14u);
  for (const Json& c : cases) {
    SCOPED_TRACE(c.at("name"));
    const auto tokenizer = make_byte_level(c.at("tokenizer"), {}, "json");
    for (size_t i = 0; i < c.at("texts").size(); ++i) {
      const auto text = c.at("texts")[i].get<std::string>();
      EXPECT_EQ(tokenizer->encode(text, false), c.at("ids")[i].get<Ids>())
          << c.at("texts")[i].dump(-1, ' ', true);
    }
  }
}

TEST(TokenizerCases, SpecialTokensMap) {
  const auto dir = std::filesystem::path(testing::TempDir()) / "special_tokens_map";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  std::filesystem::copy(text_data() / "small.tokenizer.json", dir / "tokenizer.json");
  std::ofstream(dir / "special_tokens_map.json") << R"({"bos_token": {"content": "<s>"}})";
  EXPECT_EQ(load_tokenizer(dir)->bos_id(), load_tokenizer(dir)->token_id("<s>"));
  std::filesystem::remove_all(dir);
}

TEST(TokenizerCases, TokenizerConfigOfTokenizerJson) {
  const Json json = read_json(text_data() / "small.tokenizer.json");
  const auto with = [&](const char* config) {
    return make_byte_level(json, parse_tokenizer_config(Json::parse(config), "config"), "json");
  };
  const int32_t bos = json.at("/added_tokens/0/id"_json_pointer);
  const auto plain = with("{}")->encode("a", false);
  ASSERT_EQ(plain.size(), 1);
  EXPECT_EQ(with("{}")->encode("a", true), (Ids{bos, plain[0]}));
  EXPECT_EQ(with(R"({"bos_token": "<s>"})")->bos_id(), bos);
  EXPECT_EQ(with(R"({"bos_token": "<s>", "add_bos_token": false})")->encode("a", true), plain);
  EXPECT_EQ(with(R"({"bos_token": "<left>", "add_bos_token": true})")->encode("a", true),
            (Ids{bos + 1, plain[0]}));
  // Tokens that only the config knows are added; those of the file stay as the file has them.
  const auto more = with(R"({"eos_token": "<new>", "added_tokens_decoder": {
      "300": {"content": "<new>", "special": true}, "7": {"content": "<left>"}}})");
  EXPECT_EQ(more->encode("<new><left>", false), (Ids{300, bos + 1}));
  EXPECT_EQ(more->eos_id(), 300);
  EXPECT_EQ(more->vocab_size(), 301);
  EXPECT_TRUE(more->is_special(300));
  EXPECT_EQ(more->token_bytes(299), "");
}

TEST(TokenizerCases, StreamEqualsDecodeForRandomIds) {
  std::vector<std::unique_ptr<Tokenizer>> tokenizers;
  tokenizers.push_back(load_tokenizer(kNeedle));
  tokenizers.push_back(make_sentencepiece(read_file(text_data() / "small.model"), {}, "small"));
  std::mt19937 random(5);
  for (const auto& tokenizer : tokenizers) {
    // Single bytes and special tokens are among the lowest ids; -1 and vocab_size() have no text.
    std::uniform_int_distribution<int32_t> low(-1, 265), any(0, tokenizer->vocab_size());
    for (int round = 0; round < 300; ++round) {
      Ids ids;
      for (int i = 0; i < 40; ++i) ids.push_back((round % 2 ? low : any)(random));
      for (const bool skip : {false, true}) {
        const std::string text = tokenizer->decode(ids, skip);
        EXPECT_NO_THROW(require_utf8(text, "decoded text"));
        EXPECT_EQ(stream(*tokenizer, ids, skip), text);
      }
    }
  }
}

}  // namespace
}  // namespace ei::test
