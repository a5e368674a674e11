#include "ei/text/sentencepiece.h"

#include <algorithm>
#include <cstdio>
#include <unordered_map>

#include "ei/base/fail.h"
#include "ei/text/bpe.h"
#include "ei/text/chars_map.h"

namespace ei {
namespace {

using Ids = std::vector<int32_t>;

constexpr std::string_view kSpace = "\u2581";  // what a space is in a piece

size_t char_bytes(std::string_view text) { return decode_utf8(text).n_bytes; }

std::string with_spaces(std::string_view piece) {
  std::string text;
  for (size_t i = 0; i < piece.size();) {
    const bool space = piece.substr(i).starts_with(kSpace);
    text += space ? ' ' : piece[i];
    i += space ? kSpace.size() : 1;
  }
  return text;
}

// The byte that a BYTE piece, spelt <0xHH>, stands for.
uint8_t byte_of(std::string_view piece, std::string_view where) {
  unsigned byte = 0;
  const bool ok = piece.size() == 6 && std::sscanf(piece.data(), "<0x%2X>", &byte) == 1 &&
                  fmt::format("<0x{:02X}>", byte) == piece;
  require(ok, "{}: the piece \"{}\" of type BYTE is not spelt <0xHH>", where, piece);
  return static_cast<uint8_t>(byte);
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(Vocabulary vocabulary, SentencePieceModel model, std::string_view where)
      : Tokenizer(std::move(vocabulary)),
        model_(std::move(model)),
        chars_map_(model_.charsmap, where) {
    for (size_t i = 0; i < model_.pieces.size(); ++i) {
      const SentencePieceModel::Piece& piece = model_.pieces[i];
      const auto id = static_cast<int32_t>(i);
      if (piece.type == SentencePieceModel::kByte) id_of_byte_[byte_of(piece.text, where)] = id;
      if (piece.type == SentencePieceModel::kUserDefined)
        user_defined_.add({.id = id, .content = piece.text});
      if (piece.type == SentencePieceModel::kNormal ||
          piece.type == SentencePieceModel::kUserDefined ||
          piece.type == SentencePieceModel::kUnused)
        symbol_of_.emplace(piece.text, id);
    }
    for (int byte = 0; model_.byte_fallback && byte < 256; ++byte)
      require(id_of_byte_.contains(static_cast<uint8_t>(byte)),
              "{}: byte_fallback is set, but there is no piece <0x{:02X}>", where, byte);
    make_merges();
  }

 private:
  // SentencePiece merges neighbours when they joined are a piece, the highest score first.
  void make_merges() {
    std::vector<float> scores;
    for (const SentencePieceModel::Piece& piece : model_.pieces) scores.push_back(piece.score);
    std::sort(scores.begin(), scores.end(), std::greater<>());
    split_of_.resize(model_.pieces.size(), {-1, -1});
    for (size_t id = 0; id < model_.pieces.size(); ++id) {
      const std::string_view text = model_.pieces[id].text;
      const auto self = symbol_of_.find(std::string(text));
      if (self == symbol_of_.end() || self->second != static_cast<int32_t>(id)) continue;
      // The number of better scores: the same for equal scores, of which the leftmost goes first.
      const auto rank =
          static_cast<int32_t>(std::lower_bound(scores.begin(), scores.end(),
                                                model_.pieces[id].score, std::greater<>()) -
                               scores.begin());
      for (size_t cut = char_bytes(text); cut < text.size(); cut += char_bytes(text.substr(cut))) {
        const std::string_view left = text.substr(0, cut), right = text.substr(cut);
        if (right.starts_with(kSpace) && !left.ends_with(kSpace)) words_end_at_space_ = false;
        const int32_t left_symbol = symbol(left), right_symbol = symbol(right);
        if (left_symbol < 0 || right_symbol < 0) continue;
        merges_.add(left_symbol, right_symbol, rank, static_cast<int32_t>(id));
        split_of_[id] = {left_symbol, right_symbol};
      }
    }
  }

  // A part of a piece as a symbol, or -1: it is a piece, or a character, which then gets an id of
  // its own beyond those of the pieces.
  int32_t symbol(std::string_view text) {
    const auto next = static_cast<int32_t>(model_.pieces.size() + chars_.size());
    if (const auto it = symbol_of_.find(std::string(text)); it != symbol_of_.end())
      return it->second;
    if (char_bytes(text) < text.size()) return -1;
    chars_.emplace_back(text);
    symbol_of_.emplace(text, next);
    return next;
  }

  void encode_text(std::string_view text, bool /*parse_special*/, Ids& ids) const override {
    const std::string normalized = normalize(text);
    const std::string_view rest = normalized;
    const size_t first = ids.size();
    WordCache cache;
    size_t word = 0;  // where it begins
    const auto end_word = [&](size_t at) {
      if (at > word)
        cache.append(rest.substr(word, at - word), ids,
                     [&](std::string_view w, Ids& out) { encode_word(w, out); });
      word = at;
    };
    bool after_space = false;
    for (size_t at = 0; at < rest.size();) {
      if (const AddedToken* token = user_defined_.longest_at(rest, at)) {  // never merged
        end_word(at);
        ids.push_back(token->id);
        word = at += token->content.size();
        continue;
      }
      const bool space = rest.substr(at).starts_with(kSpace);
      if (space && !after_space && words_end_at_space_) end_word(at);
      after_space = space;
      at += char_bytes(rest.substr(at));
    }
    end_word(rest.size());
    if (!model_.byte_fallback) {  // a run of unknown characters is one unknown token
      const auto both_unknown = [&](int32_t a, int32_t b) { return a == b && a == model_.unk_id; };
      ids.erase(std::unique(ids.begin() + static_cast<ptrdiff_t>(first), ids.end(), both_unknown),
                ids.end());
    }
  }

  void encode_word(std::string_view word, Ids& ids) const {
    Ids symbols;
    for (size_t at = 0; at < word.size();) {
      const std::string_view c = word.substr(at, char_bytes(word.substr(at)));
      const auto it = symbol_of_.find(std::string(c));
      if (it != symbol_of_.end())
        symbols.push_back(it->second);
      else
        unknown(c, symbols);
      at += c.size();
    }
    merges_.apply(symbols);
    for (const int32_t s : symbols) emit(s, ids);
  }

  void unknown(std::string_view c, Ids& ids) const {
    if (!model_.byte_fallback) return ids.push_back(model_.unk_id);
    for (const char byte : c) ids.push_back(id_of_byte_.at(static_cast<uint8_t>(byte)));
  }

  void emit(int32_t symbol, Ids& ids) const {
    const auto i = static_cast<size_t>(symbol);
    if (i >= model_.pieces.size()) return unknown(chars_[i - model_.pieces.size()], ids);
    if (model_.pieces[i].type != SentencePieceModel::kUnused || split_of_[i].first < 0)
      return ids.push_back(symbol);
    emit(split_of_[i].first, ids);
    emit(split_of_[i].second, ids);
  }

  // The head of the text after replacement, and how many bytes of the text it stands for.
  std::pair<std::string_view, size_t> head(std::string_view text) const {
    std::string_view replacement;
    if (const AddedToken* token = user_defined_.longest_at(text, 0))
      return {token->content, token->content.size()};
    if (const size_t n_bytes = chars_map_.match(text, replacement)) return {replacement, n_bytes};
    return {text.substr(0, char_bytes(text)), char_bytes(text)};
  }

  std::string normalize(std::string_view text) const {
    const std::string_view space = model_.escape_whitespaces ? kSpace : " ";
    const bool trim = model_.remove_extra_whitespaces;
    while (trim && !text.empty() && head(text).first == " ") text.remove_prefix(head(text).second);
    std::string out;
    out.reserve(text.size() + text.size() / 2);
    if (model_.add_dummy_prefix) out = space;  // trimmed again where there is nothing else
    bool after_space = trim;
    while (!text.empty()) {
      auto [part, n_bytes] = head(text);
      text.remove_prefix(n_bytes);
      while (after_space && part.starts_with(' ')) part.remove_prefix(1);
      if (part.empty()) continue;
      for (const char c : part) c == ' ' ? out += space : out += c;
      after_space = trim && part.ends_with(' ');
    }
    while (trim && out.ends_with(space)) out.resize(out.size() - space.size());
    return out;
  }

  std::optional<int32_t> find_token(std::string_view token) const override {
    const auto it =
        std::find_if(model_.pieces.begin(), model_.pieces.end(),
                     [&](const SentencePieceModel::Piece& piece) { return piece.text == token; });
    if (it == model_.pieces.end()) return std::nullopt;
    return static_cast<int32_t>(it - model_.pieces.begin());
  }

  const SentencePieceModel model_;
  const CharsMap chars_map_;
  AddedTokens user_defined_;
  std::unordered_map<uint8_t, int32_t> id_of_byte_;
  std::unordered_map<std::string, int32_t> symbol_of_;  // what merges: pieces, then chars_
  std::vector<std::string> chars_;  // characters of pieces that are none themselves
  std::vector<std::pair<int32_t, int32_t>> split_of_;  // the symbols an UNUSED piece falls into
  BpeMerges merges_;
  bool words_end_at_space_ = true;  // no piece has a space after something else
};

Vocabulary make_vocabulary(const SentencePieceModel& model, const TokenizerConfig& config,
                           std::string_view where) {
  Vocabulary vocabulary;
  vocabulary.errors = Utf8Stream::Errors::kEachByte;
  using FirstSpace = Vocabulary::FirstSpace;
  vocabulary.first_space = model.remove_extra_whitespaces ? FirstSpace::kAllDropped
                           : model.add_dummy_prefix       ? FirstSpace::kDropped
                                                          : FirstSpace::kKept;
  const auto add = [&](AddedToken added) {
    const auto id = static_cast<size_t>(added.id);
    if (vocabulary.tokens.size() <= id) vocabulary.tokens.resize(id + 1);
    vocabulary.tokens[id] = {.bytes = added.content, .special = false, .added = true};
    if (!vocabulary.added.lookup(added.content)) vocabulary.added.add(std::move(added));
  };
  for (const AddedToken& added : config.added_tokens) add(added);
  vocabulary.tokens.resize(std::max(vocabulary.tokens.size(), model.pieces.size()));
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const SentencePieceModel::Piece& piece = model.pieces[id];
    Vocabulary::Token& token = vocabulary.tokens[id];
    if (token.added) continue;
    if (piece.type == SentencePieceModel::kControl || piece.type == SentencePieceModel::kUnknown) {
      add({.id = static_cast<int32_t>(id), .content = piece.text, .special = true});
      token.special = true;
    } else if (piece.type == SentencePieceModel::kByte) {
      token = {.bytes = std::string(1, static_cast<char>(byte_of(piece.text, where))),
               .byte = true};
    } else {
      token.bytes = with_spaces(piece.text);
    }
  }

  // The tokens that have a name are what decode(skip_special) leaves out, and no others.
  const std::vector<std::string>& names = config.special_tokens;
  const auto id_named = [&](const std::optional<std::string>& name,
                            int32_t fallback) -> std::optional<int32_t> {
    if (!name) return fallback < 0 ? std::nullopt : std::optional(fallback);
    const AddedToken* token = vocabulary.added.lookup(*name);
    return token ? std::optional(token->id) : std::nullopt;
  };
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const std::string& text = model.pieces[id].text;
    if (std::find(names.begin(), names.end(), text) == names.end()) continue;
    if (!vocabulary.added.lookup(text))
      add({.id = static_cast<int32_t>(id), .content = text, .special = true});
  }
  vocabulary.bos = id_named(config.bos_token, model.bos_id);
  vocabulary.eos = id_named(config.eos_token, model.eos_id);
  for (const std::string& name : names)
    if (const AddedToken* token = vocabulary.added.lookup(name))
      vocabulary.tokens[static_cast<size_t>(token->id)].special = true;
  for (const auto& id : {vocabulary.bos, vocabulary.eos, std::optional(model.unk_id)})
    if (id) vocabulary.tokens[static_cast<size_t>(*id)].special = true;
  if (config.add_bos_token.value_or(true) && vocabulary.bos) vocabulary.prefix = {*vocabulary.bos};
  return vocabulary;
}

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece(std::string_view bytes, const TokenizerConfig& config,
                                              std::string_view where) {
  return make_sentencepiece(parse_sentencepiece_model(bytes, where), config, where);
}

std::unique_ptr<Tokenizer> make_sentencepiece(SentencePieceModel model,
                                              const TokenizerConfig& config,
                                              std::string_view where) {
  Vocabulary vocabulary = make_vocabulary(model, config, where);
  return std::make_unique<SentencePieceTokenizer>(std::move(vocabulary), std::move(model), where);
}

}  // namespace ei
