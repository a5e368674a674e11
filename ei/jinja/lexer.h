#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ei/jinja/value.h"

namespace ei::jinja {

struct Token {
  enum class Kind {
    kData,  // text to print as it is
    kPrintBegin,
    kPrintEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,
    kNumber,
    kOperator,
    kEnd,
  };
  Kind kind;
  int line;          // from 1
  std::string text;  // data, name, string without its escapes, operator
  Value number;
};

// An error of the template's text, which has a line of its own.
class SyntaxError : public Error {
 public:
  SyntaxError(int line, const std::string& what) : Error(what), line(line) {}
  int line;
};

// The template as tokens, the last one kEnd. Comments are gone, and white
// space is trimmed as the tags and trim_blocks and lstrip_blocks say. Throws SyntaxError.
std::vector<Token> tokenize(std::string_view source);

}  // namespace ei::jinja
