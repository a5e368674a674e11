#include <nlohmann/json.hpp>
#include <string_view>

#include "ei/base/error.h"
#include "ei/text/byte_level.h"
#include "ei/text/chat_template.h"

namespace {

// Two control tokens that overlap, and few bytes.
const ei::Tokenizer& tokenizer() {
  static const auto made = ei::make_byte_level(ei::Json::parse(R"({
    "model": {"vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"], "unk_token": "<unk>"},
    "added_tokens": [{"id": 4, "content": "<|a|>", "special": true},
                     {"id": 5, "content": "|><|", "special": true}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
    "decoder": {"type": "ByteLevel"}})"),
                                               {}, "fuzz");
  return *made;
}

}  // namespace

// A template and, behind a line "====", messages.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) try {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find("\n====\n");
  if (end == input.npos) return 0;
  const auto messages =
      ei::OrderedJson::parse(input.substr(end + 6), nullptr, /*allow_exceptions=*/false);
  const ei::ChatTemplate chat(input.substr(0, end), "fuzz", {{"bos_token", "<|a|>"}}, tokenizer());
  chat.encode(messages, {.strftime_now = [](auto format) { return std::string(format); }});
  return 0;
} catch (const ei::Error&) {
  return 0;
}
