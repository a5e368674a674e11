#include "ei/jinja/text.h"

#include <fmt/format.h>
#include <string.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <iterator>

namespace ei::jinja {
namespace {

constexpr size_t npos = std::string_view::npos;

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}
bool is_upper(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LL; }
bool is_title(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LT; }
bool is_cased(char32_t c) { return is_upper(c) || is_lower(c) || is_title(c); }
bool is_alpha(char32_t c) {
  const auto kind = category(c);
  return is_cased(c) || kind == UTF8PROC_CATEGORY_LM || kind == UTF8PROC_CATEGORY_LO;
}
bool is_decimal(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }
bool is_numeric(char32_t c) {
  const auto kind = category(c);
  return is_decimal(c) || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO;
}
bool is_printable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

void append_upper(std::string& out, char32_t c) {
  if (c == 0xDF)
    out += "SS";
  else
    append_char(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
}
void append_title(std::string& out, char32_t c) {
  if (c == 0xDF)
    out += "Ss";
  else
    append_char(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
}
void append_lower(std::string& out, char32_t c) {
  append_char(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

std::string reversed_bytes(std::string_view text) { return {text.rbegin(), text.rend()}; }

std::string_view last_char(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin);
}

template <class Unwanted>
std::string_view strip_if(std::string_view text, Side side, const Unwanted& unwanted) {
  while (side != Side::kRight && !text.empty()) {
    const Utf8Char c = decode_utf8(text);
    if (!unwanted(c.value)) break;
    text.remove_prefix(c.n_bytes);
  }
  while (side != Side::kLeft && !text.empty()) {
    const std::string_view last = last_char(text);
    if (!unwanted(decode_utf8(last).value)) break;
    text.remove_suffix(last.size());
  }
  return text;
}

bool ends_line(char32_t c) {
  return (c >= '\n' && c <= '\r') || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

}  // namespace

bool is_ascii(std::string_view text) {
  uint8_t bits = 0;
  for (const char c : text) bits |= static_cast<uint8_t>(c);
  return bits < 0x80;
}

int64_t count_chars(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

size_t char_offset(std::string_view text, int64_t n) {
  size_t at = 0;
  for (; n > 0 && at < text.size(); --n) do
      ++at;
    while (at < text.size() && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return at;
}

void append_char(std::string& out, char32_t c) {
  std::array<utf8proc_uint8_t, 4> bytes;
  const auto n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes.data());
  out.append(bytes.begin(), bytes.begin() + n);
}

bool is_python_space(char32_t c) { return (c >= 0x1C && c <= 0x1F) || is_space(c); }

size_t find_text(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size()) return npos;
  text.remove_prefix(from);
  // glibc's memmem is linear in the worst case, unlike std::string_view::find.
  const void* found = memmem(text.data(), text.size(), wanted.data(), wanted.size());
  if (wanted.empty()) return from;
  return found == nullptr
             ? npos
             : from + static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

size_t rfind_text(std::string_view text, std::string_view wanted) {
  const size_t at = find_text(reversed_bytes(text), reversed_bytes(wanted));
  return at == npos ? npos : text.size() - at - wanted.size();
}

int64_t count_text(std::string_view text, std::string_view wanted) {
  if (wanted.empty()) return count_chars(text) + 1;
  int64_t n = 0;
  for (size_t at = 0; (at = find_text(text, wanted, at)) != npos; at += wanted.size()) ++n;
  return n;
}

std::string_view strip(std::string_view text, Side side) {
  return strip_if(text, side, is_python_space);
}

std::string_view strip(std::string_view text, Side side, std::string_view chars) {
  std::u32string set;
  for_each_char(chars, [&](char32_t c, std::string_view) { set += c; });
  std::sort(set.begin(), set.end());
  return strip_if(text, side,
                  [&](char32_t c) { return std::binary_search(set.begin(), set.end(), c); });
}

void split(std::string_view text, std::string_view separator, int64_t limit, const Emit& emit) {
  size_t at = 0;
  while (limit-- != 0) {
    const size_t end = find_text(text, separator, at);
    if (end == npos) break;
    emit(text.substr(at, end - at));
    at = end + separator.size();
  }
  emit(text.substr(at));
}

void rsplit(std::string_view text, std::string_view separator, int64_t limit, const Emit& emit) {
  const std::string mirror = reversed_bytes(text);
  split(mirror, reversed_bytes(separator), limit, [&](std::string_view piece) {
    const auto end = static_cast<size_t>(piece.data() + piece.size() - mirror.data());
    emit(text.substr(text.size() - end, piece.size()));
  });
}

void split_at_spaces(std::string_view text, int64_t limit, const Emit& emit) {
  while (!(text = strip(text, Side::kLeft)).empty()) {
    if (limit-- == 0) return emit(text);
    size_t end = 0;
    while (end < text.size()) {
      const Utf8Char c = decode_utf8(text.substr(end));
      if (is_python_space(c.value)) break;
      end += c.n_bytes;
    }
    emit(text.substr(0, end));
    text.remove_prefix(end);
  }
}

void rsplit_at_spaces(std::string_view text, int64_t limit, const Emit& emit) {
  while (!(text = strip(text, Side::kRight)).empty()) {
    if (limit-- == 0) return emit(text);
    std::string_view rest = text;
    while (!rest.empty()) {
      const std::string_view last = last_char(rest);
      if (is_python_space(decode_utf8(last).value)) break;
      rest.remove_suffix(last.size());
    }
    emit(text.substr(rest.size()));
    text = rest;
  }
}

void split_lines(std::string_view text, bool keep_ends, const Emit& emit) {
  while (!text.empty()) {
    size_t end = 0, next = 0;
    while (next == 0 && end < text.size()) {
      const Utf8Char c = decode_utf8(text.substr(end));
      if (ends_line(c.value))
        next = end + (text.substr(end).starts_with("\r\n") ? 2 : c.n_bytes);
      else
        end += c.n_bytes;
    }
    if (next == 0) next = end;
    emit(text.substr(0, keep_ends ? next : end));
    text.remove_prefix(next);
  }
}

std::string upper(std::string_view text) {
  std::string out;
  for_each_char(text, [&](char32_t c, std::string_view) { append_upper(out, c); });
  return out;
}

std::string lower(std::string_view text) {
  std::string out;
  for_each_char(text, [&](char32_t c, std::string_view) { append_lower(out, c); });
  return out;
}

std::string title(std::string_view text) {
  std::string out;
  bool in_word = false;
  for_each_char(text, [&](char32_t c, std::string_view) {
    in_word ? append_lower(out, c) : append_title(out, c);
    in_word = is_cased(c);
  });
  return out;
}

std::string capitalize(std::string_view text) {
  std::string out;
  for_each_char(text, [&](char32_t c, std::string_view) {
    out.empty() ? append_title(out, c) : append_lower(out, c);
  });
  return out;
}

std::string swap_case(std::string_view text) {
  std::string out;
  for_each_char(text, [&](char32_t c, std::string_view) {
    is_upper(c) ? append_lower(out, c) : append_upper(out, c);
  });
  return out;
}

std::string title_words(std::string_view text) {
  std::string out;
  bool in_word = false;
  for_each_char(text, [&](char32_t c, std::string_view bytes) {
    if (is_python_space(c) || std::string_view("-({[<").find(bytes) != npos) {
      out += bytes;
      in_word = false;
    } else {
      in_word ? append_lower(out, c) : append_upper(out, c);
      in_word = true;
    }
  });
  return out;
}

bool has_class(std::string_view text, std::string_view name) {
  if (name == "ascii") return is_ascii(text);
  bool all = !text.empty();
  const auto check = [&](auto&& holds) {
    for_each_char(text, [&](char32_t c, std::string_view) { all = all && holds(c); });
    return all;
  };
  if (name == "alpha") return check(is_alpha);
  if (name == "alnum") return check([](char32_t c) { return is_alpha(c) || is_numeric(c); });
  if (name == "decimal" || name == "digit") return check(is_decimal);
  if (name == "numeric") return check(is_numeric);
  if (name == "space") return check(is_python_space);

  bool any_cased = false, upper_only = true, lower_only = true, titled = true, in_word = false;
  for_each_char(text, [&](char32_t c, std::string_view) {
    any_cased |= is_cased(c);
    upper_only &= !is_lower(c) && !is_title(c);
    lower_only &= !is_upper(c) && !is_title(c);
    titled &= is_lower(c) ? in_word : !(in_word && is_cased(c));
    in_word = is_cased(c);
  });
  return any_cased && (name == "lower" ? lower_only : name == "upper" ? upper_only : titled);
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  return out;
}

std::string reverse_text(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::string_view last = last_char(text);
    out += last;
    text.remove_suffix(last.size());
  }
  return out;
}

std::string quote(std::string_view text) {
  const char mark = text.find('\'') != npos && text.find('"') == npos ? '"' : '\'';
  std::string out(1, mark);
  for_each_char(text, [&](char32_t c, std::string_view bytes) {
    const auto code = static_cast<uint32_t>(c);
    if (c == '\\' || c == static_cast<unsigned char>(mark))
      (out += '\\') += bytes;
    else if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\t')
      out += "\\t";
    else if (is_printable(c))
      out += bytes;
    else if (c < 0x100)
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", code);
    else if (c < 0x10000)
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", code);
    else
      fmt::format_to(std::back_inserter(out), "\\U{:08x}", code);
  });
  return out + mark;
}

}  // namespace ei::jinja
