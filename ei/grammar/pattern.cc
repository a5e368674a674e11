#include <bitset>
#include <charconv>
#include <vector>

#include "ei/base/fail.h"
#include "ei/grammar/json_schema.h"

namespace ei::grammar {
namespace {

constexpr int kMaxDepth = 64, kMaxRepeat = 1000;

struct Item;
using Sequence = std::vector<Item>;

struct Item {
  enum class Kind { kClass, kText, kAny, kGroup } kind = Kind::kClass;
  std::bitset<128> ascii;       // of a class
  bool others = false;          // and all characters beyond ASCII
  std::string text;             // one character beyond ASCII
  std::vector<Sequence> group;  // alternatives
  int least = 1, most = 1;      // most < 0: without end
};

class Parser {
 public:
  explicit Parser(std::string_view pattern) : text_(pattern) {}

  // What stands between ^ and $ may be surrounded by anything where one of them is missing.
  std::vector<Sequence> parse() {
    std::vector<Sequence> all = alternatives(0);
    if (!text_.empty()) wrong("')'");
    return all;
  }

 private:
  [[noreturn]] static void wrong(std::string_view what) {
    fail("\"pattern\": {} is not supported there", what);
  }
  bool take(char c) {
    if (text_.empty() || text_.front() != c) return false;
    text_.remove_prefix(1);
    return true;
  }
  char next() {
    if (text_.empty()) wrong("its end");
    const char c = text_.front();
    text_.remove_prefix(1);
    return c;
  }

  std::vector<Sequence> alternatives(int depth) {
    require(depth < kMaxDepth, "\"pattern\" nests over {} groups", kMaxDepth);
    std::vector<Sequence> all;
    do {
      Sequence sequence;
      bool is_ended = false;
      if (depth == 0 && !take('^')) sequence.push_back(anything());
      while (!text_.empty() && text_.front() != '|' && text_.front() != ')') {
        if (is_ended) wrong("'$'");
        if (depth == 0 && take('$')) {
          is_ended = true;
        } else {
          sequence.push_back(item(depth));
        }
      }
      if (depth == 0 && !is_ended) sequence.push_back(anything());
      all.push_back(std::move(sequence));
    } while (take('|'));
    return all;
  }

  static Item anything() {
    Item item;
    item.kind = Item::Kind::kAny;
    item.least = 0;
    item.most = -1;
    return item;
  }

  Item item(int depth) {
    Item item = atom(depth);
    if (take('*')) {
      item.least = 0;
      item.most = -1;
    } else if (take('+')) {
      item.most = -1;
    } else if (take('?')) {
      item.least = 0;
    } else if (take('{')) {
      item.least = item.most = number();
      if (take(',')) item.most = !text_.empty() && text_.front() == '}' ? -1 : number();
      if (!take('}') || (item.most >= 0 && item.most < item.least)) wrong("'{'");
    }
    take('?');  // as few as possible: the same texts
    if (!text_.empty() && std::string_view("*+?{").find(text_.front()) != std::string_view::npos)
      wrong("a second count");
    return item;
  }

  int number() {
    int value = 0;
    const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), value);
    if (error != std::errc() || value < 0 || value > kMaxRepeat) wrong("a count like this");
    text_.remove_prefix(static_cast<size_t>(end - text_.data()));
    return value;
  }

  Item atom(int depth) {
    Item item;
    const char c = next();
    switch (c) {
      case '(':
        if (take('?') && !take(':')) wrong("'(?'");
        item.kind = Item::Kind::kGroup;
        item.group = alternatives(depth + 1);
        if (!take(')')) wrong("a group without ')'");
        return item;
      case '[':
        read_class(item);
        return item;
      case '.':
        item.ascii.set().reset('\n').reset('\r');
        item.others = true;
        return item;
      case '\\':
        add_escape(item, /*in_class=*/false);
        return item;
      case '^':
      case '$':
      case '*':
      case '+':
      case '?':
      case '{':
      case '}':
      case ']':
        wrong(std::string_view(&c, 1));
      default:
        break;
    }
    if (static_cast<unsigned char>(c) < 0x80) {
      item.ascii.set(static_cast<size_t>(c));
      return item;
    }
    item.kind = Item::Kind::kText;
    item.text = c;
    while (!text_.empty() && (static_cast<unsigned char>(text_.front()) & 0xC0) == 0x80)
      item.text += next();
    return item;
  }

  static void add_range(std::bitset<128>& set, int low, int high) {
    for (int c = low; c <= high; ++c) set.set(static_cast<size_t>(c));
  }

  // What follows a backslash. The character, or -1 if it stood for several.
  int add_escape(Item& item, bool in_class) {
    const char c = next();
    std::bitset<128> set;
    switch (c) {
      case 'd':
      case 'D':
        add_range(set, '0', '9');
        break;
      case 'w':
      case 'W':
        add_range(set, '0', '9');
        add_range(set, 'a', 'z');
        add_range(set, 'A', 'Z');
        set.set('_');
        break;
      case 's':
      case 'S':
        add_range(set, '\t', '\r');
        set.set(' ');
        break;
      case 'n':
        return add(item, '\n');
      case 'r':
        return add(item, '\r');
      case 't':
        return add(item, '\t');
      case 'f':
        return add(item, '\f');
      case 'v':
        return add(item, '\v');
      default: {
        const bool is_sign = static_cast<unsigned char>(c) < 0x80 && std::isalnum(c) == 0;
        if (!is_sign) wrong(in_class ? "such an escape in a class" : "such an escape");
        return add(item, c);
      }
    }
    // Beyond ASCII it is disputed what a digit or a letter is: nothing is written there.
    has_sets_ = true;
    item.ascii |= c == 'D' || c == 'W' || c == 'S' ? ~set : set;
    return -1;
  }

  static int add(Item& item, char c) {
    item.ascii.set(static_cast<size_t>(c));
    return c;
  }

  void read_class(Item& item) {
    const bool is_negative = take('^');
    has_sets_ = false;
    bool is_first = true;
    while (is_first || text_.empty() || text_.front() != ']') {
      is_first = false;
      const char c = next();
      if (static_cast<unsigned char>(c) >= 0x80) wrong("a character beyond ASCII in a class");
      if (c == ']') wrong("an empty class");
      const int low = c == '\\' ? add_escape(item, true) : add(item, c);
      if (text_.size() < 2 || text_[0] != '-' || text_[1] == ']') continue;
      take('-');
      Item end;
      const char d = next();
      if (static_cast<unsigned char>(d) >= 0x80) wrong("a character beyond ASCII in a class");
      const int high = d == '\\' ? add_escape(end, true) : d;
      if (low < 0 || high < low) wrong("such a range");
      add_range(item.ascii, low, high);
    }
    take(']');
    if (!is_negative) return;
    item.ascii.flip();
    item.others = !has_sets_;
  }

  std::string_view text_;
  bool has_sets_ = false;
};

// Builds from the end, as everything does.
class Compiler {
 public:
  Compiler(Grammar& grammar, int32_t character) : g_(grammar), character_(character) {}

  int32_t alternatives(const std::vector<Sequence>& all, int32_t next) {
    const int32_t node = g_.node();
    for (const Sequence& sequence : all) {
      int32_t first = next;
      for (auto item = sequence.rbegin(); item != sequence.rend(); ++item)
        if (item->most != 0) first = repeated(*item, first);
      g_.free_to(node, first);
    }
    return node;
  }

 private:
  int32_t repeated(const Item& item, int32_t next) {
    int32_t node = next;
    if (item.most < 0) {
      node = g_.node();
      g_.free_to(node, once(item, node));
      g_.free_to(node, next);
    }
    for (int i = item.most; i > item.least; --i) {
      const int32_t before = g_.node();
      g_.free_to(before, once(item, node));
      g_.free_to(before, next);
      node = before;
    }
    for (int i = 0; i < item.least; ++i) node = once(item, node);
    return node;
  }

  int32_t once(const Item& item, int32_t next) {
    switch (item.kind) {
      case Item::Kind::kAny:
        return g_.called(character_, next);
      case Item::Kind::kGroup:
        return alternatives(item.group, next);
      case Item::Kind::kText:
        return g_.text(item.text, next);
      case Item::Kind::kClass:
        break;
    }
    static constexpr std::string_view kEscaped = "\"\\\b\f\n\r\t", kNames = "\"\\bfnrt";
    const int32_t node = g_.node();
    std::bitset<128> plain = item.ascii >> 0x20 << 0x20;  // other control characters are left out
    for (size_t i = 0; i < kEscaped.size(); ++i) {
      const auto c = static_cast<size_t>(kEscaped[i]);
      plain.reset(c);
      if (item.ascii[c]) g_.free_to(node, g_.text(std::string{'\\', kNames[i]}, next));
    }
    g_.edges(node, plain, next);
    if (item.others) g_.free_to(node, beyond_ascii(next));
    return node;
  }

  int32_t beyond_ascii(int32_t next) {
    const int32_t node = g_.node();
    g_.multibyte(node, next);
    return node;
  }

  Grammar& g_;
  const int32_t character_;
};

}  // namespace

int32_t pattern_rule(Grammar& grammar, std::string_view pattern, int32_t character) {
  const std::vector<Sequence> all = Parser(pattern).parse();
  return grammar.text("\"",
                      Compiler(grammar, character).alternatives(all, grammar.text("\"", kEnd)));
}

}  // namespace ei::grammar
