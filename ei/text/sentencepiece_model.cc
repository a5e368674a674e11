#include "ei/text/sentencepiece_model.h"

#include <bit>
#include <cmath>
#include <concepts>
#include <unordered_set>

#include "ei/base/fail.h"
#include "ei/base/utf8.h"
#include "ei/text/tokenizer_config.h"

namespace ei {
namespace {

// One field of a protobuf message.
struct ProtoField {
  uint64_t number = 0;
  int wire_type = 0;
  uint64_t value = 0;      // wire types 0 (varint), 1 and 5 (fixed, little-endian)
  std::string_view bytes;  // wire type 2
};

// Walks the fields of a protobuf message.
class ProtoReader {
 public:
  ProtoReader(std::string_view bytes, std::string_view where) : rest_(bytes), where_(where) {}

  bool next(ProtoField& field) {
    if (rest_.empty()) return false;
    const uint64_t key = varint();
    field = {key >> 3, static_cast<int>(key & 7), 0, {}};
    switch (field.wire_type) {
      case 0:
        field.value = varint();
        return true;
      case 1:
        field.value = fixed(8);
        return true;
      case 2:
        field.bytes = take(varint());
        return true;
      case 5:
        field.value = fixed(4);
        return true;
      default:
        fail("{}: not a SentencePiece model: field {} has the wire type {}", where_, field.number,
             field.wire_type);
    }
  }

 private:
  std::string_view take(uint64_t n_bytes) {
    require(n_bytes <= rest_.size(),
            "{}: not a whole SentencePiece model: {} bytes are left where {} should follow", where_,
            rest_.size(), n_bytes);
    const std::string_view taken = rest_.substr(0, n_bytes);
    rest_.remove_prefix(n_bytes);
    return taken;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    fail("{}: not a SentencePiece model: a number of more than ten bytes", where_);
  }
  uint64_t fixed(int n_bytes) {
    const std::string_view bytes = take(static_cast<uint64_t>(n_bytes));
    uint64_t value = 0;
    for (int i = n_bytes; i-- > 0;)
      value = value << 8 | static_cast<uint8_t>(bytes[static_cast<size_t>(i)]);
    return value;
  }

  std::string_view rest_;
  std::string_view where_;
};

// Every piece by itself, and that none is there twice.
void check_pieces(const SentencePieceModel& model, std::string_view where) {
  constexpr size_t kMaxPieceBytes = 1024;
  std::unordered_set<std::string_view> seen;
  for (int32_t id = 0; const SentencePieceModel::Piece& piece : model.pieces) {
    require(!piece.text.empty() && piece.text.size() <= kMaxPieceBytes,
            "{}: piece {} has {} bytes, expected 1 to {}", where, id, piece.text.size(),
            kMaxPieceBytes);
    require_utf8(piece.text, fmt::format("{}: piece {}", where, id));
    require(std::isfinite(piece.score), "{}: the score of piece {} is not finite", where, id);
    require(seen.insert(piece.text).second, "{}: the piece \"{}\" is there twice", where,
            piece.text);
    ++id;
  }
}

class ModelReader {
 public:
  explicit ModelReader(std::string_view where) : where_(where) {}

  SentencePieceModel read(std::string_view bytes) {
    ProtoReader reader(bytes, where_);
    for (ProtoField field; reader.next(field);) {
      if (field.number == 1) read_piece(message(field, "pieces"));
      if (field.number == 2) read_trainer_spec(message(field, "trainer_spec"));
      if (field.number == 3) read_normalizer_spec(message(field, "normalizer_spec"));
    }
    check_pieces(model_, where_);
    constexpr std::string_view kTypes[] = {"0", "UNIGRAM", "BPE", "WORD", "CHAR"};
    require(model_type_ == 2, "{}: SentencePiece model type {} is not supported; BPE is", where_,
            model_type_ < std::size(kTypes) ? kTypes[model_type_] : "unknown");
    check(model_, where_);
    return std::move(model_);
  }

 private:
  std::string_view message(const ProtoField& field, std::string_view name) const {
    require(field.wire_type == 2, "{}: {} has the wire type {}, expected 2", where_, name,
            field.wire_type);
    return field.bytes;
  }
  uint64_t number(const ProtoField& field, std::string_view name) const {
    require(field.wire_type == 0, "{}: {} has the wire type {}, expected 0", where_, name,
            field.wire_type);
    return field.value;
  }
  // Negative numbers are written as 64 bits.
  int32_t id(const ProtoField& field, std::string_view name) const {
    const auto value = static_cast<int64_t>(number(field, name));
    require(value >= -1 && value <= kMaxTokenId, "{}: {} is {}, expected an id or -1", where_, name,
            value);
    return static_cast<int32_t>(value);
  }

  void read_piece(std::string_view bytes) {
    const size_t id = model_.pieces.size();
    require(id <= static_cast<size_t>(kMaxTokenId), "{}: more than {} pieces", where_, id);
    SentencePieceModel::Piece piece;
    ProtoReader reader(bytes, where_);
    for (ProtoField field; reader.next(field);) {
      if (field.number == 1) {
        piece.text = message(field, "piece");
      } else if (field.number == 2) {
        require(field.wire_type == 5, "{}: piece {}: the score has the wire type {}, expected 5",
                where_, id, field.wire_type);
        piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
      } else if (field.number == 3) {
        const uint64_t type = number(field, "the type of a piece");
        require(type >= 1 && type <= 6, "{}: piece {} has the type {}, expected 1 to 6", where_, id,
                type);
        piece.type = static_cast<SentencePieceModel::Type>(type);
      }
    }
    model_.pieces.push_back(std::move(piece));
  }

  void read_trainer_spec(std::string_view bytes) {
    ProtoReader reader(bytes, where_);
    for (ProtoField field; reader.next(field);) {
      if (field.number == 3) model_type_ = number(field, "model_type");
      if (field.number == 24)
        require(number(field, "treat_whitespace_as_suffix") == 0,
                "{}: treat_whitespace_as_suffix is not supported", where_);
      if (field.number == 35) model_.byte_fallback = number(field, "byte_fallback") != 0;
      if (field.number == 40) model_.unk_id = id(field, "unk_id");
      if (field.number == 41) model_.bos_id = id(field, "bos_id");
      if (field.number == 42) model_.eos_id = id(field, "eos_id");
    }
  }

  void read_normalizer_spec(std::string_view bytes) {
    ProtoReader reader(bytes, where_);
    for (ProtoField field; reader.next(field);) {
      if (field.number == 2) model_.charsmap = message(field, "precompiled_charsmap");
      if (field.number == 3) model_.add_dummy_prefix = number(field, "add_dummy_prefix") != 0;
      if (field.number == 4)
        model_.remove_extra_whitespaces = number(field, "remove_extra_whitespaces") != 0;
      if (field.number == 5) model_.escape_whitespaces = number(field, "escape_whitespaces") != 0;
    }
  }

  std::string_view where_;
  uint64_t model_type_ = 1;
  SentencePieceModel model_;
};

}  // namespace

void check(const SentencePieceModel& model, std::string_view where) {
  const auto n = static_cast<int32_t>(model.pieces.size());
  require(n > 0, "{}: not a SentencePiece model: it has no pieces", where);
  check_pieces(model, where);
  for (const auto& [name, value] :
       {std::pair("unk_id", model.unk_id), {"bos_id", model.bos_id}, {"eos_id", model.eos_id}})
    require(value < n, "{}: {} is {}, but there are {} pieces", where, name, value, n);
  require(model.unk_id >= 0 &&
              model.pieces[static_cast<size_t>(model.unk_id)].type == SentencePieceModel::kUnknown,
          "{}: unk_id is {}, which is not the piece of type UNKNOWN", where, model.unk_id);
}

SentencePieceModel parse_sentencepiece_model(std::string_view bytes, std::string_view where) {
  return ModelReader(where).read(bytes);
}

}  // namespace ei
