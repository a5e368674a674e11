#include "ei/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "ei/jinja/python.h"
#include "ei/jinja/text.h"

namespace ei::jinja {
namespace {

// Longest first.
constexpr std::string_view kOperators[] = {"//", "==", "!=", ">=", "<=", "+", "-", "/", "*",
                                           "%",  "~",  "[",  "]",  "(",  ")", "{", "}", ">",
                                           "<",  "=",  ".",  ":",  "|",  ",", ";"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Every line ends in "\n", and the last one's end is left out.
std::string normalize_lines(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    out += source[i] == '\r' ? '\n' : source[i];
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_lines(source)) {}

  std::vector<Token> run() && {
    while (at_ < source_.size()) {
      const size_t tag = find_tag();
      if (tag == source_.npos) {
        add_data(rest());
        at_ = source_.size();
      } else {
        read_tag(tag);
      }
    }
    add(Token::Kind::kEnd, "end of template");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail_here(const std::string& what) { throw SyntaxError(line(), what); }

  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  bool looking_at(std::string_view text) const { return rest().starts_with(text); }

  // The line of at_, which only grows.
  int line() {
    const auto begin = source_.begin();
    line_ += static_cast<int>(std::count(begin + static_cast<ptrdiff_t>(counted_),
                                         begin + static_cast<ptrdiff_t>(at_), '\n'));
    counted_ = at_;
    return line_;
  }

  void add(Token::Kind kind, std::string_view text, Value number = {}) {
    tokens_.push_back({kind, line(), std::string(text), std::move(number)});
  }
  void add_data(std::string_view text) {
    if (!text.empty()) add(Token::Kind::kData, text);
  }

  size_t find_tag() const {
    for (size_t i = at_; (i = source_.find('{', i)) != source_.npos; ++i)
      if (i + 1 < source_.size() &&
          std::string_view("%{#").find(source_[i + 1]) != std::string_view::npos)
        return i;
    return source_.npos;
  }

  void skip_space() { at_ = source_.size() - strip(rest(), Side::kLeft).size(); }

  char take_sign() {
    if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) return source_[at_++];
    return 0;
  }

  // If a tag's end ("%}" with "-" or "+" in front) is here, skips it and the space it takes away.
  bool skip_end(std::string_view end, bool may_keep) {
    if (looking_at(end)) {
      at_ += 2;
      if (may_keep && looking_at("\n")) ++at_;  // trim_blocks
      return true;
    }
    const bool strips = looking_at("-"), keeps = may_keep && looking_at("+");
    if ((!strips && !keeps) || !rest().substr(1).starts_with(end)) return false;
    at_ += 3;
    if (strips) skip_space();
    return true;
  }

  // Text in front of a tag, without the space that the tag takes away.
  std::string_view trimmed(size_t begin, size_t end, char sign, bool is_block) const {
    const std::string_view text = std::string_view(source_).substr(begin, end - begin);
    if (sign == '-') return strip(text, Side::kRight);
    if (sign == '+' || !is_block) return text;
    // lstrip_blocks: what is between the line's begin and the tag, when it is all space.
    const size_t newline = text.rfind('\n');
    const bool starts_line = begin == 0 || source_[begin - 1] == '\n';
    if (newline == source_.npos && !starts_line) return text;
    const size_t line_begin = newline == source_.npos ? 0 : newline + 1;
    return strip(text.substr(line_begin), Side::kLeft).empty() ? text.substr(0, line_begin) : text;
  }

  void read_tag(size_t tag) {
    const size_t begin = at_;
    const char kind = source_[tag + 1];
    at_ = tag + 2;
    const char sign = take_sign();
    const std::string_view before = trimmed(begin, tag, sign, kind != '{');
    const size_t inside = std::exchange(at_, begin);
    add_data(before);
    at_ = inside;
    if (kind == '#') return skip_comment();
    add(kind == '%' ? Token::Kind::kBlockBegin : Token::Kind::kPrintBegin, "tag");
    read_expression(kind == '%');
  }

  void skip_comment() {
    const size_t end = source_.find("#}", at_);
    if (end == source_.npos) fail_here("Missing end of comment tag");
    const bool has_sign = end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+');
    at_ = has_sign ? end - 1 : end;
    skip_end("#}", /*may_keep=*/true);
  }

  void read_expression(bool is_block) {
    std::string open;  // the closing brackets waited for
    while (true) {
      skip_space();
      const int first_line = line();
      if (open.empty() && (is_block ? skip_end("%}", true) : skip_end("}}", false))) {
        tokens_.push_back({is_block ? Token::Kind::kBlockEnd : Token::Kind::kPrintEnd,
                           first_line,
                           "end of tag",
                           {}});
        return;
      }
      if (at_ == source_.size()) fail_here("the template ends inside a tag");
      const char c = source_[at_];
      if (is_digit(c))
        read_number();
      else if (c == '"' || c == '\'')
        read_string(c);
      else if (!read_name())
        read_operator(open);
    }
  }

  char char_at(size_t at) const { return at < source_.size() ? source_[at] : '\0'; }

  size_t digits_end(size_t at) const {
    while (is_digit(char_at(at))) ++at;
    return at;
  }

  void read_number() {
    const size_t begin = at_;
    size_t end = digits_end(begin);
    bool is_float = false;
    if (begin == 0 || source_[begin - 1] != '.') {  // unlike items.0.1
      if (char_at(end) == '.' && is_digit(char_at(end + 1))) {
        end = digits_end(end + 1);
        is_float = true;
      }
      const char sign = char_at(end + 1);
      const size_t exponent = end + 1 + (sign == '+' || sign == '-');
      if ((char_at(end) | 0x20) == 'e' && is_digit(char_at(exponent))) {
        end = digits_end(exponent);
        is_float = true;
      }
    }
    const std::string_view text = std::string_view(source_).substr(begin, end - begin);
    add(Token::Kind::kNumber, text,
        is_float ? Value(*parse_float(text)) : Value(*parse_integer(text)));
    at_ = end;
  }

  bool read_name() {
    size_t end = at_;
    while (end < source_.size()) {
      const Utf8Char c = decode_utf8(std::string_view(source_).substr(end));
      if (!is_word(c.value)) break;
      end += c.n_bytes;
    }
    if (end == at_) return false;
    add(Token::Kind::kName, std::string_view(source_).substr(at_, end - at_));
    at_ = end;
    return true;
  }

  void read_operator(std::string& open) {
    const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                     [&](std::string_view op) { return looking_at(op); });
    if (found == std::end(kOperators))
      fail_here("unexpected character " + quote(rest().substr(0, decode_utf8(rest()).n_bytes)));
    const char c = found->front();
    constexpr std::string_view kOpening = "([{", kClosing = ")]}";
    if (const size_t i = kOpening.find(c); i != std::string_view::npos) {
      open += kClosing[i];
    } else if (kClosing.find(c) != std::string_view::npos) {
      if (open.empty() || open.back() != c) fail_here(fmt::format("unexpected '{}'", c));
      open.pop_back();
    }
    add(Token::Kind::kOperator, *found);
    at_ += found->size();
  }

  void read_string(char mark) {
    std::string text;
    size_t at = at_ + 1;
    while (char_at(at) != mark) {
      if (at >= source_.size()) fail_here("a string has no end");
      if (source_[at] == '\\')
        at = read_escape(at + 1, text);
      else
        text += source_[at++];
    }
    add(Token::Kind::kString, text);
    at_ = at + 1;
  }

  // As in Python; an unknown escape stays as it is written. Returns where it ends.
  size_t read_escape(size_t at, std::string& out) {
    const char c = char_at(at);
    constexpr std::string_view kNames = "\\'\"abfnrtv", kValues = "\\'\"\a\b\f\n\r\t\v";
    if (const size_t i = kNames.find(c); i != std::string_view::npos) {
      out += kValues[i];
      return at + 1;
    }
    if (c == '\n') return at + 1;
    const size_t n = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (n > 0) return add_code(at + 1, n, out);
    out += '\\';
    return at;
  }

  size_t add_code(size_t at, size_t n, std::string& out) {
    uint32_t code = 0;
    const char* begin = source_.data() + std::min(at, source_.size());
    const char* end = source_.data() + std::min(at + n, source_.size());
    if (std::from_chars(begin, end, code, 16).ptr != begin + n) fail_here("truncated escape");
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF))
      fail_here(fmt::format("the escape {:x} is not a character", code));
    append_char(out, static_cast<char32_t>(code));
    return at + n;
  }

  const std::string source_;
  size_t at_ = 0;
  size_t counted_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace ei::jinja
