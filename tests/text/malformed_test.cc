// Every malformed or unsupported file is refused with a message that names it and the field.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>

#include "ei/base/error.h"
#include "ei/text/byte_level.h"
#include "ei/text/sentencepiece.h"
#include "tests/text/cases.h"

namespace ei::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string refusal(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

std::filesystem::path empty_folder(const std::string& name) {
  const auto dir = std::filesystem::path(testing::TempDir()) / name;
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  return dir;
}

// The small tokenizer.json with one value of it replaced.
std::string refusal_of_json(const std::string& pointer, const Json& value,
                            const TokenizerConfig& config = {}) {
  Json json = read_json(text_data() / "small.tokenizer.json");
  json[Json::json_pointer(pointer)] = value;
  return refusal([&] { make_byte_level(json, config, "tokenizer.json"); });
}

TEST(MalformedTokenizerJson, IsRefusedByName) {
  struct Case {
    const char *pointer, *value, *says;
  };
  for (const auto& [pointer, value, says] : {
           Case{"/model", "null", "\"model\" is missing"},
           {"/model/type", "\"Unigram\"", "model type Unigram is not supported; BPE is"},
           {"/model/type", "7", "\"type\""},
           {"/model/vocab", "null", "\"vocab\" is missing"},
           {"/model/vocab", "[]", "model.vocab is not an object"},
           {"/model/vocab", "{}", "model.vocab is not an object"},
           {"/model/vocab", "{\"a\": 0}", "is not in the vocabulary"},
           {"/model/vocab/ka", "\"5\"", "\"5\" is not a token id"},
           {"/model/vocab/ka", "-1", "-1 is not a token id"},
           {"/model/vocab/ka", "4000000000", "4000000000 is not a token id"},
           {"/model/vocab/ka", "18446744073709551615", "is not a token id"},
           {"/model/vocab/ka", "1.5", "1.5 is not a token id"},
           {"/model/vocab/ka", "3", "two tokens have the id 3"},
           {"/model/merges", "null", "\"merges\" is missing"},
           {"/model/merges", "7", "model.merges is not a list"},
           {"/model/merges/0", "7", "model.merges[0] is neither"},
           {"/model/merges/0", "[\"a\"]", "model.merges[0] is neither"},
           {"/model/merges/0", "[\"a\", 1]", "model.merges[0] is neither"},
           {"/model/merges/0", "\"ab\"", "expected two tokens and a space"},
           {"/model/merges/0", "\"a b c\"", "expected two tokens and a space"},
           {"/model/merges/1", "\"k q\"", "\"kq\" is not in the vocabulary"},
           {"/model/merges/1", "[\"zz\", \"a\"]", "\"zz\" is not in the vocabulary"},
           {"/model/merges/1", "[\"\", \"a\"]", "\"\" is not in the vocabulary"},
           {"/model/unk_token", "\"<none>\"",
            "model.unk_token \"<none>\" is not in the vocabulary"},
           {"/model/byte_fallback", "true", "model.byte_fallback is not supported"},
           {"/model/dropout", "0.1", "model.dropout is not supported"},
           {"/model/end_of_word_suffix", "\"</w>\"", "model.end_of_word_suffix is not supported"},
           {"/model/ignore_merges", "1", "\"ignore_merges\""},
           {"/decoder", "null", "a decoder other than ByteLevel"},
           {"/decoder/type", "\"Metaspace\"", "a decoder other than ByteLevel"},
           {"/decoder/type", "{}", "a decoder other than ByteLevel"},
           {"/normalizer/type", "\"NFKC\"", "normalizer NFKC is not supported; NFC is"},
           {"/normalizer", "[]", "expected a JSON object"},
           {"/pre_tokenizer", "null", "pre_tokenizer: no ByteLevel"},
           {"/pre_tokenizer/pretokenizers", "{}", "pre_tokenizer.pretokenizers is not a list"},
           {"/pre_tokenizer/pretokenizers/0/type", "\"Metaspace\"",
            "pre_tokenizer Metaspace is not"},
           {"/pre_tokenizer/pretokenizers/0/behavior", "\"Lost\"", "behavior Lost is not"},
           {"/pre_tokenizer/pretokenizers/0/pattern", "{\"Text\": \"x\"}", "\"Regex\" is missing"},
           {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(\"", "not valid at byte 1"},
           {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"\\\\C\"", "not valid"},
           {"/pre_tokenizer/pretokenizers/2", "{\"type\": \"Digits\"}", "Digits after ByteLevel"},
           {"/pre_tokenizer/pretokenizers/1/add_prefix_space", "true", "with add_prefix_space"},
           {"/added_tokens", "{}", "added_tokens is not a list"},
           {"/added_tokens/0/id", "99999999", "\"id\" is 99999999"},
           {"/added_tokens/0/id", "null", "\"id\" is missing"},
           {"/added_tokens/0/id", "5", "has the id 5 of another token"},
           {"/added_tokens/0/content", "7", "\"content\""},
           {"/added_tokens/0/lstrip", "7", "\"lstrip\""},
           {"/post_processor/type", "\"BertProcessing\"", "post_processor BertProcessing is not"},
           {"/post_processor/single", "[]", "has no text"},
           {"/post_processor/single/0", "{\"Sequence\": {\"id\": \"A\"}}", "has two texts"},
           {"/post_processor/single/0", "{}", "\"SpecialToken\" is missing"},
           {"/post_processor/special_tokens", "{}", "field \"<s>\" is missing"},
       })
    EXPECT_THAT(refusal_of_json(pointer, Json::parse(value)),
                AllOf(HasSubstr("tokenizer.json"), HasSubstr(says)))
        << pointer << " = " << value;
}

// As models of embeddings have it.
TEST(MalformedTokenizerJson, TokensMayStandBehindTheText) {
  Json json = read_json(text_data() / "small.tokenizer.json");
  Json& parts = json["post_processor"]["single"];
  parts.push_back(parts[0]);
  const auto tokenizer = make_byte_level(json, {}, "tokenizer.json");
  std::vector<int32_t> ids = tokenizer->encode("a word", false);
  ids.insert(ids.begin(), 270);
  ids.push_back(270);
  EXPECT_EQ(tokenizer->encode("a word", true), ids);
}

TEST(MalformedTokenizerJson, AnEndlessRegexGivesUp) {
  Json json = read_json(text_data() / "small.tokenizer.json");
  json["/pre_tokenizer/pretokenizers/0/pattern/Regex"_json_pointer] = "(a+)+$";
  const auto tokenizer = make_byte_level(json, {}, "tokenizer.json");
  EXPECT_THAT(refusal([&] { tokenizer->encode(std::string(60, 'a') + "b", false); }),
              HasSubstr("the regular expression gave up at byte 0"));
}

TEST(MalformedTokenizerJson, EmptyMatchesStillCut) {
  Json json = read_json(text_data() / "small.tokenizer.json");
  json["/pre_tokenizer/pretokenizers/0/pattern/Regex"_json_pointer] = "k*|é*";
  const auto tokenizer = make_byte_level(json, {}, "tokenizer.json");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("kkaéké ka", false), false), "kkaéké ka");
}

TEST(MalformedText, IsRefusedAtItsByte) {
  const auto tokenizer = load_tokenizer(kNeedle);
  EXPECT_THAT(refusal([&] { tokenizer->encode("abc\xFF", true); }), HasSubstr("byte 3 (0xFF)"));
}

TEST(MalformedTokenizerConfig, IsRefusedByName) {
  struct Case {
    const char *text, *says;
  };
  for (const Case& c : {
           Case{"[]", "expected a JSON object"},
           {R"({"bos_token": 7})", "\"bos_token\""},
           {R"({"eos_token": {"text": "x"}})", "\"content\" is missing"},
           {R"({"add_bos_token": "yes"})", "\"add_bos_token\""},
           {R"({"additional_special_tokens": "x"})", "\"additional_special_tokens\""},
           {R"({"added_tokens_decoder": []})", "\"added_tokens_decoder\""},
           {R"({"added_tokens_decoder": {"x": {"content": "a"}}})", "\"x\" is not a token id"},
           {R"({"added_tokens_decoder": {"-1": {"content": "a"}}})", "\"-1\" is not a token id"},
           {R"({"added_tokens_decoder": {"99999999999": {"content": "a"}}})", "is not a token id"},
           {R"({"added_tokens_decoder": {"1": {}}})", "\"content\" is missing"},
       })
    EXPECT_THAT(
        refusal([&] { parse_tokenizer_config(Json::parse(c.text), "tokenizer_config.json"); }),
        AllOf(HasSubstr("tokenizer_config.json"), HasSubstr(c.says)))
        << c.text;
}

// Protocol buffers, written by hand.
std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 128; value >>= 7) bytes += static_cast<char>(value | 128);
  return bytes + static_cast<char>(value);
}
std::string number(int field, uint64_t value) {
  return varint(static_cast<uint64_t>(field) << 3) + varint(value);
}
std::string bytes(int field, const std::string& content) {
  return varint(static_cast<uint64_t>(field) << 3 | 2) + varint(content.size()) + content;
}
std::string score(uint32_t bits) {
  std::string field = varint(2 << 3 | 5);
  for (int i = 0; i < 4; ++i) field += static_cast<char>(bits >> 8 * i);
  return field;
}
std::string piece(const std::string& text, int type = 1) {
  return bytes(1, bytes(1, text) + score(0) + number(3, static_cast<uint64_t>(type)));
}
const std::string kUnknown = piece("<unk>", 2);
const std::string kBpe =
    bytes(2, number(3, 2) + number(41, ~uint64_t{0}) + number(42, ~uint64_t{0}));

TEST(MalformedSentencePiece, IsRefusedByName) {
  ASSERT_NO_THROW(make_sentencepiece(kUnknown + piece("a") + kBpe, {}, "tokenizer.model"));
  const std::string spec = number(3, 2) + number(41, ~uint64_t{0}) + number(42, ~uint64_t{0});
  struct Case {
    std::string model, says;
  };
  for (const Case& c : {
           Case{"", "model type UNIGRAM is not supported; BPE is"},
           {bytes(2, number(3, 3)), "model type WORD"},
           {bytes(2, number(3, 77)), "model type unknown"},
           {kBpe, "it has no pieces"},
           {"hello, world", "not a SentencePiece model"},
           {"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", "more than ten bytes"},
           {"\x0A", "not a whole SentencePiece model"},
           {"\x0A\x7Fx", "1 bytes are left where 127 should follow"},
           {"\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7Fx", "should follow"},
           {"\x0B", "wire type 3"},
           {number(1, 5), "pieces has the wire type 0"},
           {bytes(1, score(0)), "piece 0 has 0 bytes"},
           {piece(std::string(2000, 'x')), "piece 0 has 2000 bytes"},
           {piece("\xC3"), "piece 0: byte 0 (0xC3) is not UTF-8"},
           {piece("a", 9), "piece 0 has the type 9"},
           {bytes(1, bytes(1, "a") + score(0x7FC00000)), "the score of piece 0 is not finite"},
           {bytes(1, bytes(1, "a") + number(2, 1)), "the score has the wire type 0"},
           {kUnknown + piece("a") + piece("a") + kBpe, "the piece \"a\" is there twice"},
           {piece("a") + kBpe, "unk_id is 0, which is not the piece of type UNKNOWN"},
           {kUnknown + bytes(2, spec + number(40, 5)), "unk_id is 5, but there are 1 pieces"},
           {kUnknown + bytes(2, spec + number(41, 5)), "bos_id is 5, but there are 1 pieces"},
           {kUnknown + bytes(2, spec + number(42, uint64_t{1} << 40)), "eos_id is 1099511627776"},
           {kUnknown + bytes(2, spec + number(24, 1)), "treat_whitespace_as_suffix"},
           {kUnknown + bytes(2, spec + number(35, 1)), "there is no piece <0x00>"},
           {kUnknown + piece("<0xZZ>", 6) + kBpe, "\"<0xZZ>\" of type BYTE"},
           {kUnknown + piece("<0x0a>", 6) + kBpe, "\"<0x0a>\" of type BYTE"},
           {kUnknown + piece("x", 6) + kBpe, "\"x\" of type BYTE"},
           {kUnknown + kBpe + bytes(3, bytes(2, "abc")), "precompiled_charsmap of 3 bytes"},
           {kUnknown + kBpe + bytes(3, bytes(2, std::string("\xFF\xFF\xFF\xFF....", 8))),
            "a trie of 4294967295 bytes"},
           {kUnknown + kBpe + bytes(3, bytes(2, std::string("\4\0\0\0....x", 9))),
            "does not end with NUL"},
       })
    EXPECT_THAT(refusal([&] { make_sentencepiece(c.model, {}, "tokenizer.model"); }),
                AllOf(HasSubstr("tokenizer.model"), HasSubstr(c.says)))
        << testing::PrintToString(c.model.substr(0, 40));
}

TEST(MalformedSentencePiece, EveryTruncationIsRefusedOrRuns) {
  const std::string whole = read_file(text_data() / "small.model");
  for (size_t size = 0; size < whole.size(); size += 1 + size / 300) {
    const std::string message = refusal([&] {
      make_sentencepiece(whole.substr(0, size), {}, "tokenizer.model")->encode("kalo A", true);
    });
    EXPECT_THAT(message, testing::AnyOf("accepted", HasSubstr("tokenizer.model"))) << size;
  }
}

TEST(LoadTokenizer, NamesBothFilesWhenThereIsNone) {
  const auto dir = empty_folder("no_tokenizer");
  EXPECT_THAT(
      refusal([&] { load_tokenizer(dir); }),
      AllOf(HasSubstr(dir.string()), HasSubstr("tokenizer.json"), HasSubstr("tokenizer.model")));
}

// Llama 2's tokenizer.json is of a kind that is not read; the tokenizer.model beside it is.
TEST(LoadTokenizer, TakesTheModelFileWhenTheJsonIsOfAnotherKind) {
  const auto dir = empty_folder("both_tokenizers");
  std::ofstream(dir / "tokenizer.json") << R"({"decoder": {"type": "Sequence", "decoders": []},
      "model": {"type": "BPE", "byte_fallback": true, "vocab": {}, "merges": []}})";
  EXPECT_THAT(refusal([&] { load_tokenizer(dir); }), HasSubstr("give the model's tokenizer.model"));
  std::filesystem::copy_file(text_data() / "small.model", dir / "tokenizer.model",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_EQ(load_tokenizer(dir)->vocab_size(), 360);
}

// What tokenizer_config.json says of a SentencePiece model, as for openPangu: added tokens of which
// only those with a name are left out of the text.
TEST(TokenizerConfigOfSentencePiece, NamesAndAddsTokens) {
  TokenizerConfig config = parse_tokenizer_config(Json::parse(R"({
      "bos_token": "<s>", "eos_token": {"content": "[unused10]"}, "add_bos_token": true,
      "added_tokens_decoder": {
        "1": {"content": "<s>", "special": true},
        "360": {"content": "[unused10]", "special": true},
        "361": {"content": "[unused16]", "special": true},
        "362": {"content": "[unused1", "special": false}}})"),
                                                  "tokenizer_config.json");
  const auto tokenizer =
      make_sentencepiece(read_file(text_data() / "small.model"), config, "tokenizer.model");
  EXPECT_EQ(tokenizer->vocab_size(), 363);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 360);
  auto plain = [&](std::string_view text) {
    const TextPiece piece{std::string(text), false};
    return tokenizer->encode(std::span(&piece, 1), false);
  };
  // Each stretch between added tokens is a text of its own, with its own space in front.
  std::vector<int32_t> want{1, 361};
  for (const int32_t id : plain("ka")) want.push_back(id);
  want.push_back(360);
  for (const int32_t id : plain("ka")) want.push_back(id);
  want.push_back(362);
  EXPECT_EQ(tokenizer->encode("[unused16]ka[unused10]ka[unused1", true), want);
  EXPECT_EQ(tokenizer->decode(want, false), "<s>[unused16]ka[unused10]ka[unused1");
  EXPECT_EQ(tokenizer->decode(want, true), "[unused16]ka ka[unused1");
  EXPECT_FALSE(tokenizer->is_special(361));
  // Literal text spells control tokens out; other added tokens are recognised.
  EXPECT_EQ(plain("[unused1").back(), 362);
  EXPECT_NE(plain("[unused16]").back(), 361);
}

}  // namespace
}  // namespace ei::test
