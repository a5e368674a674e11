#include "ei/text/byte_level.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <unordered_map>

#include "ei/base/fail.h"
#include "ei/text/bpe.h"
#include "ei/text/regex.h"

namespace ei {
namespace {

// The vocabulary spells bytes as printable characters: these stand for themselves, the others, in
// order, are U+0100 and up.
constexpr bool is_spelt_as_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct ByteSpelling {
  std::array<int, 0x144> byte_of{};  // by code point; -1 where it spells no byte
  constexpr ByteSpelling() {
    byte_of.fill(-1);
    for (int byte = 0, next = 0x100; byte < 256; ++byte)
      byte_of[static_cast<size_t>(is_spelt_as_itself(byte) ? byte : next++)] = byte;
  }
};

// The bytes a token of the vocabulary stands for; nothing when a character of it spells no byte.
std::optional<std::string> unspell(std::string_view token) {
  static constexpr ByteSpelling spelling;
  std::string bytes;
  for (size_t i = 0; i < token.size();) {
    const Utf8Char c = decode_utf8(token.substr(i));
    if (c.value >= spelling.byte_of.size() || spelling.byte_of[c.value] < 0) return std::nullopt;
    bytes += static_cast<char>(spelling.byte_of[c.value]);
    i += c.n_bytes;
  }
  return bytes;
}

// What ByteLevel with use_regex cuts by: GPT-2's words.
constexpr std::string_view kWords =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// The regular expression that matches just this text.
std::string escaped(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    if (std::ispunct(static_cast<unsigned char>(c))) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

using Ids = std::vector<int32_t>;

class ByteLevelTokenizer final : public Tokenizer {
 public:
  struct Parts {
    Vocabulary vocabulary;
    AddedTokens normalized;  // added tokens that are looked for after normalization
    bool nfc = false;
    std::vector<SplitRegex> splits;                  // one after the other
    bool ignore_merges = false;                      // a piece that is a token is that token
    std::unordered_map<std::string, int32_t> id_of;  // by bytes; for ignore_merges
    std::array<int32_t, 256> id_of_byte;             // -1: no token
    int32_t unknown = -1;                            // what such a byte becomes; -1: nothing
    bool fuse_unknown = false;                       // a run of them in a word is one
    BpeMerges merges;
  };
  explicit ByteLevelTokenizer(Parts parts)
      : Tokenizer(std::move(parts.vocabulary)), parts_(std::move(parts)) {}

  std::vector<size_t> special_places(std::string_view text) const override {
    std::vector<size_t> places = Tokenizer::special_places(text);
    const std::vector<size_t> more = parts_.normalized.special_places(text);
    places.insert(places.end(), more.begin(), more.end());
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    return places;
  }

 private:
  void encode_text(std::string_view text, bool parse_special, Ids& ids) const override {
    std::string normalized;
    if (parts_.nfc) text = normalized = nfc(text);
    const TextRange whole{0, text.size()};
    size_t done = 0;
    for (const auto& match :
         parts_.normalized.find(text, std::span(&whole, parse_special ? 0 : 1))) {
      encode_plain(text.substr(done, match.begin - done), ids);
      ids.push_back(match.id);
      done = match.end;
    }
    encode_plain(text.substr(done), ids);
  }

  void encode_plain(std::string_view text, Ids& ids) const {
    std::vector<std::string_view> pieces{text};
    for (const SplitRegex& regex : parts_.splits) {
      std::vector<std::string_view> finer;
      for (const std::string_view piece : pieces) {
        const auto parts = regex.split(piece);
        finer.insert(finer.end(), parts.begin(), parts.end());
      }
      pieces = std::move(finer);
    }
    WordCache cache;
    Ids symbols;
    for (const std::string_view piece : pieces) {
      cache.append(piece, ids, [&](std::string_view word, Ids& out) {
        if (parts_.ignore_merges)
          if (const auto it = parts_.id_of.find(std::string(word)); it != parts_.id_of.end())
            return out.push_back(it->second);
        symbols.clear();
        bool after_unknown = false;
        for (const char c : word) {
          const int32_t id = parts_.id_of_byte[static_cast<uint8_t>(c)];
          const bool is_unknown = id < 0;
          if (!is_unknown)
            symbols.push_back(id);
          else if (parts_.unknown >= 0 && !(after_unknown && parts_.fuse_unknown))
            symbols.push_back(parts_.unknown);
          after_unknown = is_unknown;
        }
        parts_.merges.apply(symbols);
        out.insert(out.end(), symbols.begin(), symbols.end());
      });
    }
  }

  std::optional<int32_t> find_token(std::string_view token) const override {
    if (const AddedToken* added = parts_.normalized.lookup(token)) return added->id;
    const auto bytes = unspell(token);
    const auto& tokens = vocabulary_.tokens;
    const auto it = std::find_if(tokens.begin(), tokens.end(), [&](const Vocabulary::Token& t) {
      return bytes && t.bytes == *bytes;
    });
    if (token.empty() || it == tokens.end()) return std::nullopt;
    return static_cast<int32_t>(it - tokens.begin());
  }

  const Parts parts_;
};

// Reads one tokenizer.json; every method throws Error naming the file and the field.
class Reader {
 public:
  Reader(const Json& json, std::string_view where)
      : file_(json, where), json_(json), where_(where) {}

  std::unique_ptr<Tokenizer> read(const TokenizerConfig& config) {
    const Fields model(file_.at("model"), fmt::format("{}: model", where_));
    const std::string type = model.string("type", "BPE");
    require(type == "BPE", "{}: model type {} is not supported; BPE is", where_, type);
    require(is_byte_level(json_),
            "{}: a decoder other than ByteLevel is not supported; give the model's tokenizer.model "
            "if it has one",
            where_);
    for (const char* field : {"continuing_subword_prefix", "end_of_word_suffix"})
      require(model.string(field, "").empty(), "{}: model.{} is not supported; it must be empty",
              where_, field);
    require(!model.boolean("byte_fallback", false),
            "{}: model.byte_fallback is not supported with the ByteLevel decoder", where_);
    require(!model.has("dropout") || model.number("dropout", 0, 1) == 0,
            "{}: model.dropout is not supported; it makes the tokens random", where_);
    parts_.ignore_merges = model.boolean("ignore_merges", false);
    read_vocab(model.at("vocab"));
    parts_.fuse_unknown = model.boolean("fuse_unk", false);
    if (model.has("unk_token")) {
      const auto unknown = spelt_.find(model.string("unk_token"));
      require(unknown != spelt_.end(), "{}: model.unk_token \"{}\" is not in the vocabulary",
              where_, model.string("unk_token"));
      parts_.unknown = unknown->second;
    }
    read_merges(model.at("merges"));
    read_normalizer();
    read_added_tokens();
    read_pre_tokenizer();
    read_post_processor();
    apply(config);
    return std::make_unique<ByteLevelTokenizer>(std::move(parts_));
  }

 private:
  // The steps of an optional field that is one step or a Sequence of them in its field `list`.
  std::vector<Fields> steps(std::string_view field, std::string_view list) const {
    std::vector<Fields> found;
    if (file_.has(field)) flatten(file_.at(field), field, list, found);
    return found;
  }
  void flatten(const Json& json, std::string_view field, std::string_view list,
               std::vector<Fields>& found) const {
    const Fields step(json, fmt::format("{}: {}", where_, field));
    if (step.string("type") != "Sequence") return found.push_back(step);
    const Json& items = step.at(list);
    require(items.is_array(), "{}: {}.{} is not a list", where_, field, list);
    for (const Json& item : items) flatten(item, field, list, found);
  }

  Vocabulary::Token& token(int32_t id) {
    auto& tokens = parts_.vocabulary.tokens;
    if (tokens.size() <= static_cast<size_t>(id)) tokens.resize(static_cast<size_t>(id) + 1);
    return tokens[static_cast<size_t>(id)];
  }

  int32_t id_in(const Json& value, std::string_view field) const {
    // Not require(): it would print every id of a vocabulary.
    if (!value.is_number_integer() || value < 0 || value > kMaxTokenId)
      fail("{}: {}: {} is not a token id from 0 to {}", where_, field, value.dump(), kMaxTokenId);
    return value.get<int32_t>();
  }

  void read_vocab(const Json& vocab) {
    require(vocab.is_object() && !vocab.empty(),
            "{}: model.vocab is not an object of tokens and their ids", where_);
    spelt_.reserve(vocab.size());
    std::vector<bool> used;
    parts_.id_of_byte.fill(-1);
    for (const auto& [text, value] : vocab.get_ref<const Json::object_t&>()) {
      const int32_t id = id_in(value, "model.vocab");
      const auto i = static_cast<size_t>(id);
      if (used.size() <= i) used.resize(i + 1);
      require(!used[i], "{}: model.vocab: two tokens have the id {}, one of them \"{}\"", where_,
              id, text);
      used[i] = true;
      spelt_.emplace(text, id);
      if (auto bytes = unspell(text)) {
        token(id).bytes = *bytes;
        if (bytes->size() == 1) parts_.id_of_byte[static_cast<uint8_t>(bytes->front())] = id;
        if (parts_.ignore_merges) parts_.id_of.emplace(std::move(*bytes), id);
      } else {
        token(id).bytes = text;  // can only come out of the model, never of a text
      }
    }
  }

  void read_merges(const Json& merges) {
    require(merges.is_array(), "{}: model.merges is not a list", where_);
    std::string joined;
    int32_t rank = 0;
    for (const Json& merge : merges) {
      std::string_view left, right;
      if (merge.is_string()) {  // "a b"
        const std::string_view text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        require(space != text.npos && text.find(' ', space + 1) == text.npos,
                "{}: model.merges[{}] is \"{}\", expected two tokens and a space between them",
                where_, rank, text);
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else {  // ["a", "b"]
        require(
            merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string(),
            "{}: model.merges[{}] is neither a string nor a pair of strings", where_, rank);
        left = merge[0].get_ref<const std::string&>();
        right = merge[1].get_ref<const std::string&>();
      }
      joined.assign(left).append(right);
      const auto id = [&](std::string_view text) {
        const auto it = spelt_.find(text);
        require(it != spelt_.end(),
                "{}: model.merges[{}] makes \"{}\" of \"{}\" and \"{}\", but \"{}\" is not in the "
                "vocabulary",
                where_, rank, joined, left, right, text);
        return it->second;
      };
      const int32_t left_id = id(left), right_id = id(right);
      parts_.merges.add(left_id, right_id, rank, id(joined));
      ++rank;
    }
  }

  void read_normalizer() {
    for (const Fields& step : steps("normalizer", "normalizers")) {
      const std::string type = step.string("type");
      require(type == "NFC", "{}: normalizer {} is not supported; NFC is", where_, type);
      parts_.nfc = true;
    }
  }

  void read_added_tokens() {
    if (!file_.has("added_tokens")) return;
    const Json& list = file_.at("added_tokens");
    require(list.is_array(), "{}: added_tokens is not a list", where_);
    for (const Json& item : list) {
      const std::string at = fmt::format("{}: added_tokens", where_);
      AddedToken added = parse_added_token(item, at);
      added.id = static_cast<int32_t>(Fields(item, at).integer("id", 0, kMaxTokenId));
      add(std::move(added));
    }
  }

  void add(AddedToken added) {
    if (added.normalized && parts_.nfc) added.content = nfc(added.content);
    Vocabulary::Token& entry = token(added.id);
    const std::string bytes = unspell(added.content).value_or(added.content);
    require(entry.bytes.empty() || entry.bytes == bytes,
            "{}: added_tokens: \"{}\" has the id {} of another token", where_, added.content,
            added.id);
    entry = {bytes, added.special, /*added=*/true};
    (added.normalized ? parts_.normalized : parts_.vocabulary.added).add(std::move(added));
  }

  void read_pre_tokenizer() {
    bool has_byte_level = false;
    for (const Fields& step : steps("pre_tokenizer", "pretokenizers")) {
      const std::string type = step.string("type");
      require(!has_byte_level, "{}: pre_tokenizer: {} after ByteLevel is not supported", where_,
              type);
      if (type == "ByteLevel") {
        has_byte_level = true;
        require(!step.boolean("add_prefix_space", true),
                "{}: pre_tokenizer ByteLevel with add_prefix_space is not supported; it must be "
                "false",
                where_);
        if (step.boolean("use_regex", true)) parts_.splits.emplace_back(kWords, step.where());
      } else if (type == "Digits") {
        const bool each = step.boolean("individual_digits", false);
        parts_.splits.emplace_back(each ? "\\p{N}" : "\\p{N}+", step.where());
      } else if (type == "Split") {
        read_split(step);
      } else {
        fail("{}: pre_tokenizer {} is not supported; Split, Digits and ByteLevel are", where_,
             type);
      }
    }
    require(has_byte_level, "{}: pre_tokenizer: no ByteLevel, which is needed", where_);
  }

  void read_split(const Fields& step) {
    using Behavior = SplitRegex::Behavior;
    constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
        {"Isolated", Behavior::kIsolated},
        {"Removed", Behavior::kRemoved},
        {"Contiguous", Behavior::kContiguous},
        {"MergedWithPrevious", Behavior::kMergedWithPrevious},
        {"MergedWithNext", Behavior::kMergedWithNext}};
    const std::string name = step.string("behavior");
    const auto* behavior = std::find_if(std::begin(kBehaviors), std::end(kBehaviors),
                                        [&](const auto& known) { return known.first == name; });
    require(behavior != std::end(kBehaviors), "{}: behavior {} is not one that Split has",
            step.where(), name);
    const Fields pattern(step.at("pattern"), step.where());
    parts_.splits.emplace_back(
        pattern.has("String") ? escaped(pattern.string("String")) : pattern.string("Regex"),
        step.where(), behavior->second, step.boolean("invert", false));
  }

  void read_post_processor() {
    for (const Fields& step : steps("post_processor", "processors")) {
      const std::string type = step.string("type");
      if (type == "ByteLevel") continue;  // offsets only
      require(type == "TemplateProcessing",
              "{}: post_processor {} is not supported; ByteLevel and TemplateProcessing are",
              where_, type);
      read_template(step);
    }
  }

  // "single" is a list of {"SpecialToken": {"id": name}} and one {"Sequence": ..} for the text.
  void read_template(const Fields& step) {
    const Json& parts = step.at("single");
    require(parts.is_array(), "{}: \"single\" is not a list", step.where());
    std::vector<int32_t>* side = &parts_.vocabulary.prefix;
    for (const Json& json : parts) {
      const Fields part(json, step.where());
      if (part.has("Sequence")) {
        require(side == &parts_.vocabulary.prefix, "{}: \"single\" has two texts", step.where());
        side = &parts_.vocabulary.suffix;
        continue;
      }
      const std::string name = Fields(part.at("SpecialToken"), step.where()).string("id");
      const Fields known(step.at("special_tokens"), step.where());
      const Json& ids = Fields(known.at(name), step.where()).at("ids");
      require(ids.is_array(), "{}: the ids of {} are not a list", step.where(), name);
      for (const Json& id : ids) side->push_back(id_in(id, step.where()));
    }
    require(side == &parts_.vocabulary.suffix, "{}: \"single\" has no text", step.where());
  }

  std::optional<int32_t> named(const std::optional<std::string>& content) const {
    if (!content) return std::nullopt;
    for (const AddedTokens* set : {&parts_.vocabulary.added, &parts_.normalized})
      if (const AddedToken* found = set->lookup(*content)) return found->id;
    return std::nullopt;
  }

  void apply(const TokenizerConfig& config) {
    // Tokens that only tokenizer_config.json knows are added, as transformers does on loading.
    for (const AddedToken& added : config.added_tokens)
      if (!named(added.content)) add(added);
    Vocabulary& vocabulary = parts_.vocabulary;
    vocabulary.bos = named(config.bos_token);
    vocabulary.eos = named(config.eos_token);
    if (config.add_bos_token && !(*config.add_bos_token && vocabulary.bos))
      vocabulary.prefix.clear();
    else if (config.add_bos_token)
      vocabulary.prefix = {*vocabulary.bos};
  }

  const Fields file_;
  const Json& json_;
  const std::string where_;
  std::unordered_map<std::string_view, int32_t> spelt_;  // ids by token as in the file
  ByteLevelTokenizer::Parts parts_;
};

}  // namespace

bool is_byte_level(const Json& tokenizer_json) {
  const Json::json_pointer type("/decoder/type");
  return tokenizer_json.contains(type) && tokenizer_json[type] == "ByteLevel";
}

std::unique_ptr<Tokenizer> make_byte_level(const Json& tokenizer_json,
                                           const TokenizerConfig& config, std::string_view where) {
  return Reader(tokenizer_json, where).read(config);
}

}  // namespace ei
