#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ei {

// What of a SentencePiece ModelProto the encoder uses; the defaults are the format's. Read by a
// bounds-checked reader of our own: nothing in the file is trusted.
struct SentencePieceModel {
  enum Type { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  struct Piece {
    std::string text;  // UTF-8, not empty
    float score = 0;   // finite
    Type type = kNormal;
  };
  std::vector<Piece> pieces;  // the index is the id

  bool byte_fallback = false;
  int32_t unk_id = 0, bos_id = 1, eos_id = 2;  // bos_id and eos_id may be -1: there is none

  std::string charsmap;  // rules that replace characters; see CharsMap
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// Throws Error naming `where` unless pieces are as said above and different, and ids among them.
void check(const SentencePieceModel& model, std::string_view where);

// Throws Error naming `where` and the field when the bytes are not a ModelProto, when the model is
// not BPE, or when it uses what is not supported.
SentencePieceModel parse_sentencepiece_model(std::string_view bytes, std::string_view where);

}  // namespace ei
