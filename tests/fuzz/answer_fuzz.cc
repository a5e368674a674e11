#include <algorithm>
#include <cstdint>

#include "ei/text/answer_parser.h"

// The first byte says how an answer is written and taken apart; whole or in pieces, the parts are
// the same, and without calls and thoughts they are the answer.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view answer(reinterpret_cast<const char*>(data + 1), size - 1);
  ei::AnswerFormat format{static_cast<ei::ToolFormat>(data[0] % 5), {}, {}};
  if ((data[0] & 0x80) != 0) format.think_begin = "<think>", format.think_end = "</think>";
  ei::AnswerParser::Options options;
  options.tools = {"f"};
  options.in_thought = (data[0] & 0xC0) == 0xC0;
  options.is_form = (data[0] & 0x20) != 0;
  const auto taken = [&](size_t piece) {
    ei::AnswerParser parser(format, options);
    std::string text[3];
    const auto add = [&](const std::vector<ei::AnswerPart>& parts) {
      for (const ei::AnswerPart& part : parts)
        text[std::min(static_cast<int>(part.kind), 2)] +=
            part.text + part.call.name + part.call.arguments;
    };
    for (size_t i = 0; i < answer.size(); i += piece) add(parser.push(answer.substr(i, piece)));
    add(parser.finish());
    return text[0] + "|" + text[1] + "|" + text[2];
  };
  const std::string whole = taken(answer.size() + 1);
  if (whole != taken(1) || whole != taken(3)) __builtin_trap();
  if (whole.ends_with("||") && whole.size() != answer.size() + 2 && (data[0] & 0x80) == 0)
    __builtin_trap();
  return 0;
}
