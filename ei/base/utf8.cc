#include "ei/base/utf8.h"

#include <string.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "ei/base/fail.h"

namespace ei {
namespace {

constexpr std::string_view kReplacement = "\uFFFD";

utf8proc_int32_t as_utf8proc(char32_t c) { return static_cast<utf8proc_int32_t>(c); }

bool is_python_space(char32_t c) { return (c >= 0x1C && c <= 0x1F) || is_space(c); }

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

}  // namespace

Utf8Char decode_utf8(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {lead, 1, Utf8Char::kGood};
  const size_t size = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (size == 0) return {0xFFFD, 1, Utf8Char::kBad};
  // The second byte is what rules out overlong forms, surrogates and values above U+10FFFF.
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t value = lead & (0x7Fu >> size);
  for (size_t i = 1; i < size; ++i) {
    if (i == bytes.size()) return {0xFFFD, i, Utf8Char::kCut};
    if (at(i) < low || at(i) > high) return {0xFFFD, i, Utf8Char::kBad};
    value = value << 6 | (at(i) & 0x3Fu);
    low = 0x80;
    high = 0xBF;
  }
  return {value, size, Utf8Char::kGood};
}

void require_utf8(std::string_view text, std::string_view where) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = decode_utf8(text.substr(i));
    require(c.kind == Utf8Char::kGood, "{}: byte {} (0x{:02X}) is not UTF-8 text", where, i,
            static_cast<uint8_t>(text[i]));
    i += c.n_bytes;
  }
}

bool is_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
  const auto category = utf8proc_category(as_utf8proc(c));
  return c == 0x85 || category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL ||
         category == UTF8PROC_CATEGORY_ZP;
}

bool is_word(char32_t c) {
  switch (utf8proc_category(as_utf8proc(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return c == 0x200C || c == 0x200D;  // the joiners
  }
}

void append_char(std::string& out, char32_t c) {
  std::array<utf8proc_uint8_t, 4> bytes;
  const auto n = utf8proc_encode_char(as_utf8proc(c), bytes.data());
  out.append(bytes.begin(), bytes.begin() + n);
}

std::string lower(std::string_view text) {
  std::string out;
  for_each_char(text, [&](char32_t c, std::string_view) {
    append_char(out, static_cast<char32_t>(utf8proc_tolower(as_utf8proc(c))));
  });
  return out;
}

size_t find_text(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size()) return text.npos;
  if (wanted.empty()) return from;
  // glibc's memmem is linear in the worst case, unlike std::string_view::find.
  const char* begin = text.data() + from;
  const void* found = memmem(begin, text.size() - from, wanted.data(), wanted.size());
  if (found == nullptr) return text.npos;
  return from + static_cast<size_t>(static_cast<const char*>(found) - begin);
}

void split(std::string_view text, std::string_view separator, int64_t limit, const Emit& emit) {
  size_t at = 0;
  while (limit-- != 0) {
    const size_t end = find_text(text, separator, at);
    if (end == text.npos) break;
    emit(text.substr(at, end - at));
    at = end + separator.size();
  }
  emit(text.substr(at));
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

std::string nfc(std::string_view text) {
  // Nothing below U+0300 composes or reorders; those code points have lead bytes up to 0xCB.
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0xCC; }))
    return std::string(text);

  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size() / 2);
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = decode_utf8(text.substr(i));
    i += c.n_bytes;
    std::array<utf8proc_int32_t, 16> parts;  // the longest canonical decomposition has four
    const auto n = utf8proc_decompose_char(as_utf8proc(c.value), parts.data(), parts.size(),
                                           UTF8PROC_DECOMPOSE, nullptr);
    require(n >= 0 && n <= static_cast<utf8proc_ssize_t>(parts.size()),
            "U+{:04X} cannot be decomposed", static_cast<uint32_t>(c.value));
    points.insert(points.end(), parts.begin(), parts.begin() + n);
  }

  // utf8proc_map would reorder by exchanging neighbours, quadratic in a run of combining marks.
  const auto combining = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  for (auto run = points.begin(); run != points.end();) {
    run = std::find_if(run, points.end(), combining);
    const auto end = std::find_if_not(run, points.end(), combining);
    std::stable_sort(run, end, [&](auto a, auto b) { return combining(a) < combining(b); });
    run = end;
  }

  const auto n_points =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < n_points; ++i)
    append_char(out, static_cast<char32_t>(points[static_cast<size_t>(i)]));
  return out;
}

std::string Utf8Stream::push(std::string_view bytes) {
  tail_ += bytes;
  return drain(/*all=*/false);
}

std::string Utf8Stream::finish() { return drain(/*all=*/true); }

std::string Utf8Stream::drain(bool all) {
  std::string out;
  size_t i = 0;
  while (i < tail_.size()) {
    const Utf8Char c = decode_utf8(std::string_view(tail_).substr(i));
    if (c.kind == Utf8Char::kCut && !all) break;
    if (c.kind == Utf8Char::kGood) {
      out.append(tail_, i, c.n_bytes);
      i += c.n_bytes;
    } else {
      out += kReplacement;
      i += errors_ == Errors::kEachByte ? 1 : c.n_bytes;
    }
  }
  tail_.erase(0, i);
  return out;
}

}  // namespace ei
