#include "ei/text/answer_parser.h"

#include <algorithm>

namespace ei {
namespace {

constexpr std::string_view kWhiteSpace = " \t\r\n";
constexpr std::string_view kPythonTag = "<|python_tag|>";

bool contains(std::string_view text, std::string_view wanted) {
  return text.find(wanted) != text.npos;
}

// How many of the last bytes could be the beginning of `marker`.
size_t begun(std::string_view text, std::string_view marker) {
  if (marker.empty()) return 0;
  for (size_t n = std::min(text.size(), marker.size() - 1); n > 0; --n)
    if (text.ends_with(marker.substr(0, n))) return n;
  return 0;
}

}  // namespace

AnswerFormat AnswerFormat::of_template(std::string_view source) {
  AnswerFormat format;
  if (contains(source, "tools")) {
    if (contains(source, "<tool_call>")) {
      format.tools = ToolFormat::kHermes;
    } else if (contains(source, "[TOOL_CALLS]")) {
      format.tools = ToolFormat::kMistral;
    } else if (contains(source, "[unused11]")) {
      format.tools = ToolFormat::kPangu;
    } else if (contains(source, kPythonTag) || contains(source, "<|start_header_id|>")) {
      format.tools = ToolFormat::kLlama;
    }
  }
  if (contains(source, "</think>")) {
    format.think_begin = "<think>";
    format.think_end = "</think>";
  } else if (contains(source, "[unused17]") || contains(source, "[unused9]")) {
    format.think_begin = "[unused16]";
    format.think_end = "[unused17]";
  }
  return format;
}

std::string_view AnswerFormat::call_begin() const {
  switch (tools) {
    case ToolFormat::kHermes:
      return "<tool_call>";
    case ToolFormat::kMistral:
      return "[TOOL_CALLS]";
    case ToolFormat::kPangu:
      return "[unused11]";
    case ToolFormat::kLlama:
      return kPythonTag;
    case ToolFormat::kNone:
      break;
  }
  return "";
}

std::string_view AnswerFormat::call_end() const {
  switch (tools) {
    case ToolFormat::kHermes:
      return "</tool_call>";
    case ToolFormat::kPangu:
      return "[unused12]";
    default:
      return "";
  }
}

AnswerParser::AnswerParser(AnswerFormat format, Options options)
    : format_(std::move(format)),
      options_(std::move(options)),
      where_(options_.in_calls     ? Where::kCalls
             : options_.in_thought ? Where::kThought
                                   : Where::kText) {}

bool AnswerParser::knows(std::string_view name) const {
  return std::ranges::find(options_.tools, name) != options_.tools.end();
}

std::vector<ToolCall> AnswerParser::calls_of(std::string_view text) const {
  std::vector<ToolCall> calls = parse_json_calls(text);
  if (calls.empty() && format_.tools == ToolFormat::kLlama) calls = parse_pythonic_calls(text);
  if (calls.empty() && format_.tools == ToolFormat::kMistral) calls = parse_named_calls(text);
  if (!std::ranges::all_of(calls, [&](const ToolCall& call) { return knows(call.name); }))
    calls.clear();
  return calls;
}

std::vector<AnswerPart> AnswerParser::push(std::string_view text) {
  std::vector<AnswerPart> out;
  held_ += text;
  while (step(/*is_end=*/false, out)) {
  }
  return out;
}

std::vector<AnswerPart> AnswerParser::finish() {
  std::vector<AnswerPart> out;
  while (step(/*is_end=*/true, out)) {
  }
  return out;
}

// White space behind it is kept until it is known what follows.
void AnswerParser::add(AnswerPart::Kind kind, std::string text, std::vector<AnswerPart>& out) {
  if (has_calls_ && options_.one_call) return;
  if (skips_space_) text.erase(0, std::min(text.find_first_not_of(kWhiteSpace), text.size()));
  if (text.empty()) return;
  skips_space_ = false;
  text = std::exchange(space_, {}) + text;
  const size_t end = text.find_last_not_of(kWhiteSpace) + 1;
  space_ = text.substr(end);
  text.resize(end);
  if (text.empty()) return;
  is_begin_ = false;
  if (!out.empty() && out.back().kind == kind) {
    out.back().text += text;
  } else {
    out.push_back({.kind = kind, .text = std::move(text), .call = {}});
  }
}

void AnswerParser::go(Where where) {
  where_ = where;
  searched_ = 0;
  space_.clear();
  skips_space_ = true;
}

// One thing more; false: it takes more text, or there is none left.
bool AnswerParser::step(bool is_end, std::vector<AnswerPart>& out) {
  switch (where_) {
    case Where::kText:
      return step_text(is_end, out);
    case Where::kThought:
      return step_thought(is_end, out);
    case Where::kCalls:
      break;
  }
  return step_calls(is_end, out);
}

bool AnswerParser::step_thought(bool is_end, std::vector<AnswerPart>& out) {
  const size_t end = held_.find(format_.think_end);
  const size_t n =
      end != held_.npos ? end : held_.size() - (is_end ? 0 : begun(held_, format_.think_end));
  add(AnswerPart::Kind::kReasoning, held_.substr(0, n), out);
  held_.erase(0, n + (end != held_.npos ? format_.think_end.size() : 0));
  if (end != held_.npos) go(Where::kText);
  return end != held_.npos;
}

bool AnswerParser::step_calls(bool is_end, std::vector<AnswerPart>& out) {
  const std::string_view marker = format_.call_end();
  const size_t end = marker.empty() ? held_.npos : held_.find(marker, searched_);
  searched_ = held_.size() - std::min(held_.size(), marker.size());
  if (held_.empty() || (end == held_.npos && !is_end)) return false;
  std::string body = held_.substr(0, end == held_.npos ? end : end + marker.size());
  held_.erase(0, body.size());
  std::string_view inner = std::string_view(body).substr(0, end);
  if (inner.starts_with(format_.call_begin())) inner.remove_prefix(format_.call_begin().size());
  const std::vector<ToolCall> calls = calls_of(inner);
  if (calls.empty()) {  // then it is text, with the white space before it
    where_ = Where::kText;
    add(AnswerPart::Kind::kText, std::move(body), out);
    return true;
  }
  for (const ToolCall& call : calls) {
    if (has_calls_ && options_.one_call) break;
    out.push_back({.kind = AnswerPart::Kind::kCall, .text = {}, .call = call});
    has_calls_ = true;
  }
  go(Where::kText);
  return true;
}

bool AnswerParser::step_text(bool is_end, std::vector<AnswerPart>& out) {
  const bool has_tools = !options_.tools.empty() && format_.tools != ToolFormat::kNone;
  const std::string_view call = has_tools ? format_.call_begin() : std::string_view();
  // An answer of Llama's that begins like a call is kept until its end shows whether it is one.
  if (has_tools && format_.tools == ToolFormat::kLlama && is_begin_) {
    const size_t first = held_.find_first_not_of(kWhiteSpace);
    if (first == held_.npos && !is_end) return false;
    if (first != held_.npos && (held_[first] == '{' || held_[first] == '[')) {
      where_ = Where::kCalls;
      return true;
    }
  }
  const auto place = [&](std::string_view marker) {
    return marker.empty() ? held_.npos : held_.find(marker);
  };
  const size_t at_call = place(call), at_thought = place(format_.think_begin);
  const size_t at = std::min(at_call, at_thought);
  if (at != held_.npos) {
    add(AnswerPart::Kind::kText, held_.substr(0, at), out);
    if (at == at_call) {  // its marker stays, it may turn out to be text
      held_.erase(0, at);
      where_ = Where::kCalls;
      searched_ = 0;
    } else {
      held_.erase(0, at + format_.think_begin.size());
      go(Where::kThought);
    }
    return true;
  }
  const size_t n =
      held_.size() - (is_end ? 0 : std::max(begun(held_, call), begun(held_, format_.think_begin)));
  add(AnswerPart::Kind::kText, held_.substr(0, n), out);
  held_.erase(0, n);
  if (is_end && !space_.empty())
    out.push_back({.kind = AnswerPart::Kind::kText, .text = std::exchange(space_, {}), .call = {}});
  return false;
}

}  // namespace ei
