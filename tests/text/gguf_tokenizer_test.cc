#include "ei/text/gguf_tokenizer.h"

#include <gmock/gmock.h>

#include "ei/text/sentencepiece.h"
#include "tests/support/files.h"
#include "tests/support/gguf.h"

namespace ei::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Keeps the bytes that the keys point into.
struct Keys {
  explicit Keys(const GgufWriter& writer)
      : bytes(writer.bytes()), part(parse_gguf(std::as_bytes(std::span(bytes)), "f.gguf")) {}
  std::string bytes;
  GgufPart part;
};

// The pieces of a SentencePiece file as keys: the same tokenizer.
TEST(GgufTokenizer, LlamaIsSentencePiece) {
  const std::string path = EI_SOURCE_DIR "/tests/text/data/small.model";
  SentencePieceModel model = parse_sentencepiece_model(read_file(path), path);
  model.charsmap.clear();  // GGUF has none
  GgufWriter file;
  std::vector<std::string> texts;
  std::vector<float> scores;
  std::vector<int32_t> types;
  for (const SentencePieceModel::Piece& piece : model.pieces) {
    texts.push_back(piece.text);
    scores.push_back(piece.score);
    types.push_back(piece.type);
  }
  file.string("tokenizer.ggml.model", "llama");
  file.strings("tokenizer.ggml.tokens", texts);
  file.f32s("tokenizer.ggml.scores", scores);
  file.i32s("tokenizer.ggml.token_type", types);
  file.u32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(model.bos_id));
  file.u32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(model.eos_id));
  file.u32("tokenizer.ggml.unknown_token_id", static_cast<uint32_t>(model.unk_id));
  file.boolean("tokenizer.ggml.add_space_prefix", model.add_dummy_prefix);
  file.boolean("tokenizer.ggml.remove_extra_whitespaces", model.remove_extra_whitespaces);
  const Keys keys(file);
  const auto got = load_tokenizer(keys.part.metadata);
  const auto want = make_sentencepiece(model, {}, "small.model");
  for (const char* text : {"", "a", " Hello,  world\n", "naïve 12345", "日本 \t x"}) {
    EXPECT_EQ(got->encode(text, true), want->encode(text, true)) << text;
    EXPECT_EQ(got->decode(got->encode(text, true), true),
              want->decode(want->encode(text, true), true));
  }
  EXPECT_THAT(end_ids(keys.part.metadata, *got), ElementsAre(model.eos_id));
  EXPECT_FALSE(load_chat_template(keys.part.metadata, *got).has_value());
}

GgufWriter byte_level(const char* pre) {
  GgufWriter file;
  file.string("tokenizer.ggml.model", "gpt2");
  if (pre != nullptr) file.string("tokenizer.ggml.pre", pre);
  file.strings("tokenizer.ggml.tokens", {"1", "2", "12", "<s>", "<user>", "x", ""});
  file.i32s("tokenizer.ggml.token_type", {1, 1, 1, 3, 4, 1, 5});
  file.strings("tokenizer.ggml.merges", {"1 2"});
  file.u32("tokenizer.ggml.bos_token_id", 3);
  return file;
}

TEST(GgufTokenizer, PreTokenizersCutDigits) {
  const auto ids = [](const char* pre, bool add_bos) {
    const Keys keys(byte_level(pre));
    return load_tokenizer(keys.part.metadata)->encode("12<s>x12<user>", add_bos);
  };
  EXPECT_THAT(ids("gpt-2", true), ElementsAre(2, 3, 5, 2, 4));
  EXPECT_THAT(ids("default", true), ElementsAre(2, 3, 5, 2, 4));
  EXPECT_THAT(ids(nullptr, true), ElementsAre(2, 3, 5, 2, 4));
  EXPECT_THAT(ids("smollm", true), ElementsAre(0, 1, 3, 5, 0, 1, 4));
  EXPECT_THAT(ids("qwen2", true), ElementsAre(0, 1, 3, 5, 0, 1, 4));
  EXPECT_THAT(ids("llama-bpe", true), ElementsAre(3, 2, 3, 5, 2, 4));  // with its BOS
  EXPECT_THAT(ids("llama-bpe", false), ElementsAre(2, 3, 5, 2, 4));
}

TEST(GgufTokenizer, NamesWhatIsWrongOrNotSupported) {
  const auto error = [](const GgufWriter& file) {
    const Keys keys(file);
    return error_of([&] { load_tokenizer(keys.part.metadata); });
  };
  EXPECT_THAT(error(byte_level("chatglm-bpe")), HasSubstr("llama-bpe, llama3, tekken, qwen2"));
  GgufWriter bert;
  bert.string("tokenizer.ggml.model", "bert");
  EXPECT_THAT(error(bert), HasSubstr("\"bert\""));
  GgufWriter none;
  none.string("tokenizer.ggml.model", "gpt2");
  EXPECT_THAT(error(none), HasSubstr("tokenizer.ggml.tokens is missing"));
  GgufWriter types;
  types.string("tokenizer.ggml.model", "llama");
  types.strings("tokenizer.ggml.tokens", {"a", "b"});
  types.i32s("tokenizer.ggml.token_type", {1});
  EXPECT_THAT(error(types), HasSubstr("1 elements, expected 2"));
  GgufWriter not_utf8;
  not_utf8.string("tokenizer.ggml.model", "gpt2");
  not_utf8.strings("tokenizer.ggml.tokens", {"a\xff"});
  EXPECT_THAT(error(not_utf8), HasSubstr("token 0"));
}

}  // namespace
}  // namespace ei::test
