#include "ei/text/tokenizer.h"

#include "ei/base/fail.h"
#include "ei/text/byte_level.h"
#include "ei/text/sentencepiece.h"

namespace ei {

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_bos) const {
  const TextPiece piece{std::string(text), /*parse_special=*/true};
  return encode(std::span(&piece, 1), add_bos);
}

std::vector<int32_t> Tokenizer::encode(std::span<const TextPiece> pieces, bool add_bos) const {
  constexpr size_t kMaxBytes = size_t{1} << 30;  // positions are 32 bits wide further down
  std::string joined;
  std::vector<TextRange> literal;
  for (const TextPiece& piece : pieces) {
    if (!piece.parse_special && !piece.text.empty())
      literal.push_back({joined.size(), joined.size() + piece.text.size()});
    joined += piece.text;
  }
  require(joined.size() <= kMaxBytes, "the text to encode has {} bytes, at most {} are taken",
          joined.size(), kMaxBytes);
  require_utf8(joined, "the text to encode");

  std::vector<int32_t> ids;
  if (add_bos) ids = vocabulary_.prefix;
  const std::string_view text = joined;
  std::span<const TextRange> ranges = literal;
  size_t done = 0;
  const auto encode_until = [&](size_t end) {
    if (end == done) return;
    while (!ranges.empty() && ranges.front().end <= done) ranges = ranges.subspan(1);
    const bool touches_literal = !ranges.empty() && ranges.front().begin < end;
    encode_text(text.substr(done, end - done), !touches_literal, ids);
  };
  for (const AddedTokens::Match& match : vocabulary_.added.find(text, literal)) {
    encode_until(match.begin);
    ids.push_back(match.id);
    done = match.end;
  }
  encode_until(text.size());
  if (add_bos) ids.insert(ids.end(), vocabulary_.suffix.begin(), vocabulary_.suffix.end());
  return ids;
}

std::vector<size_t> Tokenizer::special_places(std::string_view text) const {
  return vocabulary_.added.special_places(text);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  StreamDecoder decoder(*this, skip_special);
  std::string text;
  for (const int32_t id : ids) text += decoder.push(id);
  return text + decoder.finish();
}

std::string Tokenizer::token_bytes(int32_t id) const {
  return id >= 0 && id < vocab_size() ? vocabulary_.tokens[static_cast<size_t>(id)].bytes : "";
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && vocabulary_.tokens[static_cast<size_t>(id)].special;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  if (const AddedToken* added = vocabulary_.added.lookup(token)) return added->id;
  return find_token(token);
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : vocabulary_(tokenizer.vocabulary_),
      skip_special_(skip_special),
      stream_(tokenizer.vocabulary_.errors) {}

std::string StreamDecoder::push(int32_t id) {
  if (id < 0 || static_cast<size_t>(id) >= vocabulary_.tokens.size()) return {};
  const Vocabulary::Token& token = vocabulary_.tokens[static_cast<size_t>(id)];
  if (token.special && skip_special_) return {};
  std::string_view bytes = token.bytes;
  if (token.added) {
    at_start_ = true;  // what follows an added token was encoded as a text of its own
  } else if (at_start_ && vocabulary_.first_space != Vocabulary::FirstSpace::kKept) {
    const bool drop = !token.byte && bytes.starts_with(' ');
    if (drop) bytes.remove_prefix(1);
    at_start_ = bytes.empty() && vocabulary_.first_space == Vocabulary::FirstSpace::kAllDropped;
  }
  return stream_.push(bytes);
}

std::string StreamDecoder::finish() { return stream_.finish(); }

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& model_dir) {
  const auto json_path = model_dir / "tokenizer.json";
  const auto model_path = model_dir / "tokenizer.model";
  const auto config_path = model_dir / "tokenizer_config.json";
  const TokenizerConfig config =
      parse_tokenizer_config(read_tokenizer_config(model_dir), config_path.string());
  // Llama 2 and its kind come with both files, for the same tokenizer.
  if (exists(json_path)) {
    const Json json = read_json(json_path);
    if (is_byte_level(json) || !exists(model_path))
      return make_byte_level(json, config, json_path.string());
  }
  require(exists(model_path),
          "{}: neither tokenizer.json nor tokenizer.model is there; one of them is needed",
          model_dir.string());
  return make_sentencepiece(read_file(model_path), config, model_path.string());
}

}  // namespace ei
