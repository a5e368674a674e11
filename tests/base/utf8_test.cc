#include "ei/base/utf8.h"

#include <gtest/gtest.h>

#include "ei/base/error.h"

namespace ei::test {
namespace {

std::string message(std::string_view text) {
  try {
    require_utf8(text, "prompt.txt");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Utf8, NamesTheFirstBadByte) {
  EXPECT_EQ(message(""), "");
  EXPECT_EQ(message(std::string_view("a\0é€😀\U0010FFFF\uFFFD", 18)), "");
  EXPECT_EQ(message("ab\xFF"), "prompt.txt: byte 2 (0xFF) is not UTF-8 text");
  EXPECT_EQ(message("\x80"), "prompt.txt: byte 0 (0x80) is not UTF-8 text");
  EXPECT_EQ(message("é\xE2\x82"), "prompt.txt: byte 2 (0xE2) is not UTF-8 text");
  for (const char* bad :
       {"\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xC3(", "\xF0\x9F\x98"})
    EXPECT_NE(message(bad), "") << testing::PrintToString(bad);
}

TEST(Utf8, EveryCodePointComesBack) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string bytes;
    if (c < 0x80) {
      bytes = {static_cast<char>(c)};
    } else if (c < 0x800) {
      bytes = {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
    } else if (c < 0x10000) {
      bytes = {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
               static_cast<char>(0x80 | (c & 63))};
    } else {
      bytes = {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
               static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
    }
    const Utf8Char got = decode_utf8(bytes);
    ASSERT_EQ(got.value, c);
    ASSERT_EQ(got.n_bytes, bytes.size());
    ASSERT_EQ(got.kind, Utf8Char::kGood);
    // Cut anywhere, nothing of it is given out before the rest comes.
    Utf8Stream stream(Utf8Stream::Errors::kEachSequence);
    for (size_t i = 0; i + 1 < bytes.size(); ++i) ASSERT_EQ(stream.push(bytes.substr(i, 1)), "");
    ASSERT_EQ(stream.push(bytes.substr(bytes.size() - 1)), bytes);
    ASSERT_EQ(stream.finish(), "");
  }
}

// The first column is what Python's bytes.decode(errors="replace") gives.
TEST(Utf8Stream, ReplacesWhatIsMalformed) {
  struct Case {
    std::string bytes, each_sequence, each_byte;
  };
  for (const Case& c : {Case{"\xE2\x82", "\uFFFD", "\uFFFD\uFFFD"},
                        {"\xE2\x82z", "\uFFFDz", "\uFFFD\uFFFDz"},
                        {"\xF0\x9F\x98\xE2\x82\xAC", "\uFFFD€", "\uFFFD\uFFFD\uFFFD€"},
                        {"\x80\x80z", "\uFFFD\uFFFDz", "\uFFFD\uFFFDz"},
                        {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD", "\uFFFD\uFFFD\uFFFD"}}) {
    for (const auto& [errors, want] :
         {std::pair(Utf8Stream::Errors::kEachSequence, c.each_sequence),
          {Utf8Stream::Errors::kEachByte, c.each_byte}}) {
      Utf8Stream whole(errors), byte_by_byte(errors);
      std::string got = whole.push(c.bytes);
      EXPECT_EQ(got + whole.finish(), want);
      got.clear();
      for (const char byte : c.bytes) got += byte_by_byte.push({&byte, 1});
      EXPECT_EQ(got + byte_by_byte.finish(), want);
    }
  }
}

TEST(Nfc, ComposesAndReorders) {
  EXPECT_EQ(nfc("plain é"), "plain é");
  EXPECT_EQ(nfc("e\u0301"), "é");
  EXPECT_EQ(nfc("q\u0307\u0323"), "q\u0323\u0307");  // lower class first
  EXPECT_EQ(nfc("\u1100\u1161\u11A8"), "각");        // Hangul is composed by rule
  EXPECT_EQ(nfc("\u212B"), "Å");                     // a singleton
  EXPECT_EQ(nfc("\u0958"), "\u0915\u093C");          // excluded from composition
  EXPECT_EQ(nfc("\u0344"), "\u0308\u0301");
  EXPECT_EQ(nfc(std::string_view("\0e\u0301", 4)), std::string("\0é", 3));
}

}  // namespace
}  // namespace ei::test
