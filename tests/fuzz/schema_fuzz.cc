#include <algorithm>

#include "ei/base/error.h"
#include "ei/grammar/json_schema.h"
#include "ei/grammar/matcher.h"

// A schema, and behind a zero byte a text that may be of it. Whatever is taken whole is JSON.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(all.find('\0'), all.size());
  static const auto tokens = [] {
    std::vector<std::string> bytes;
    for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
    return std::make_shared<const ei::grammar::TokenTrie>(bytes, std::vector<int32_t>{});
  }();
  try {
    const auto schema =
        ei::parse_ordered_json(all.substr(0, end), "schema", {.max_bytes = 1 << 16});
    ei::grammar::Grammar grammar;
    grammar.start = ei::grammar::JsonRules(grammar).schema(schema);
    ei::grammar::Matcher matcher(
        std::make_shared<ei::grammar::TokenGrammar>(std::move(grammar), tokens));
    matcher.allowed();
    const std::string_view text = all.substr(std::min(end + 1, size));
    if (matcher.accept(text) && matcher.can_end() &&
        ei::OrderedJson::parse(text, nullptr, false).is_discarded())
      __builtin_trap();
  } catch (const ei::Error& error) {
    if (error.what()[0] == '\0') __builtin_trap();
  }
  return 0;
}
