#include "ei/text/answer_parser.h"

#include <algorithm>
#include <cctype>

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
      where_(options_.is_form && has_tools() ? Where::kCalls
             : options_.in_thought           ? Where::kThought
                                             : Where::kText),
      may_think_(!options_.in_thought) {}

bool AnswerParser::has_tools() const {
  return !options_.tools.empty() && format_.tools != ToolFormat::kNone;
}

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
  if (skips_space_) text.erase(0, std::min(text.find_first_not_of(kWhiteSpace), text.size()));
  if (text.empty()) return;
  skips_space_ = false;
  text = std::exchange(space_, {}) + text;
  const size_t end = text.find_last_not_of(kWhiteSpace) + 1;
  space_ = text.substr(end);
  text.resize(end);
  if (text.empty()) return;
  if (kind == AnswerPart::Kind::kText) is_begin_ = may_think_ = false;
  if (!out.empty() && out.back().kind == kind) {
    out.back().text += text;
  } else {
    out.push_back({.kind = kind, .text = std::move(text), .call = {}});
  }
}

void AnswerParser::add_call(ToolCall call, std::vector<AnswerPart>& out) {
  out.push_back({.kind = AnswerPart::Kind::kCall, .text = {}, .call = std::move(call)});
  has_calls_ = true;
  is_begin_ = may_think_ = false;
}

void AnswerParser::go(Where where) {
  where_ = where;
  searched_ = 0;
  is_whole_ = false;
  space_.clear();
  skips_space_ = true;
}

// One thing more; false: it takes more text, or there is none left.
bool AnswerParser::step(bool is_end, std::vector<AnswerPart>& out) {
  if (is_done()) return held_.clear(), false;
  switch (where_) {
    case Where::kText:
      return step_text(is_end, out);
    case Where::kThought:
      return step_thought(is_end, out);
    case Where::kCalls:
      return step_calls(is_end, out);
    case Where::kArguments:
      return step_arguments(out);
    case Where::kAfterCall:
      break;
  }
  return step_after_call(is_end);
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
  if (held_.empty()) return false;
  const std::string_view begin = format_.call_begin(), marker = format_.call_end();
  size_t first = 0;
  if (held_.starts_with(begin)) {
    first = begin.size();
  } else if (!is_end && begin.starts_with(held_)) {
    return false;
  }
  if (!is_whole_) {
    CallHead head = read_call_head(std::string_view(held_).substr(first),
                                   format_.tools == ToolFormat::kMistral && !options_.is_form);
    if (head.is == CallHead::Is::kCut && !is_end) return false;
    if (head.is == CallHead::Is::kHead && knows(head.name)) {
      held_.erase(0, first + head.size);
      add_call({std::move(head.name), {}}, out);
      in_list_ = head.in_list;
      go(Where::kArguments);
      return true;
    }
    if (options_.is_form) {
      if (has_calls_) held_.clear();  // another call, of which there is too little
      where_ = Where::kText;
      return true;
    }
    is_whole_ = true;
  }
  const size_t end = marker.empty() ? held_.npos : held_.find(marker, searched_);
  searched_ = held_.size() - std::min(held_.size(), marker.size());
  if (end == held_.npos && !is_end) return false;
  std::string body = held_.substr(0, end == held_.npos ? end : end + marker.size());
  held_.erase(0, body.size());
  const std::vector<ToolCall> calls = calls_of(std::string_view(body).substr(0, end).substr(first));
  if (calls.empty()) {  // then it is text, with the white space before it
    where_ = Where::kText;
    is_whole_ = false;
    add(AnswerPart::Kind::kText, std::move(body), out);
    return true;
  }
  for (const ToolCall& call : calls)
    if (!is_done()) add_call(call, out);
  go(Where::kText);
  return true;
}

bool AnswerParser::step_arguments(std::vector<AnswerPart>& out) {
  size_t n = 0;
  bool is_over = false;
  for (; n < held_.size() && !is_over; ++n) {
    const char c = held_[n];
    if (in_string_) {
      in_string_ = is_escaped_ || c != '"';
      is_escaped_ = !is_escaped_ && c == '\\';
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if (c == '}' || c == ']') {
      is_over = --depth_ == 0;
    } else if (std::isalnum(static_cast<unsigned char>(c)) == 0 &&
               std::string_view(" \t\r\n:,+-.").find(c) == std::string_view::npos) {
      is_over = true;
      break;
    }
  }
  if (n > 0) {
    std::string text = held_.substr(0, n);
    held_.erase(0, n);
    if (out.empty()) {
      out.push_back({.kind = AnswerPart::Kind::kArguments, .text = std::move(text), .call = {}});
    } else {
      out.back().call.arguments += text;  // the call's own: nothing else came between
    }
  }
  if (!is_over) return false;
  depth_ = 0;
  go(Where::kAfterCall);
  return true;
}

// What closes a call and parts it from the next.
bool AnswerParser::step_after_call(bool is_end) {
  held_.erase(0, std::min(held_.find_first_not_of(" \t\r\n}],;"), held_.size()));
  if (held_.empty()) return false;
  const std::string_view begin = format_.call_begin(), end = format_.call_end();
  if (!end.empty() && held_.starts_with(end)) {
    held_.erase(0, end.size());
    if (!options_.is_form) go(Where::kText);  // of a form only calls follow
  } else if (held_.front() == '{') {
    if (in_list_) held_.insert(0, "[");
    go(Where::kCalls);
  } else if (held_.starts_with(begin)) {
    go(Where::kCalls);
  } else {
    if (!is_end && (end.starts_with(held_) || begin.starts_with(held_))) return false;
    go(Where::kText);
  }
  return true;
}

bool AnswerParser::step_text(bool is_end, std::vector<AnswerPart>& out) {
  const bool has_calls = has_tools() && !options_.is_form;
  const size_t first = held_.find_first_not_of(kWhiteSpace);
  if (first == held_.npos && !is_end && is_begin_) return false;
  const std::string_view rest = first == held_.npos ? "" : std::string_view(held_).substr(first);
  const std::string_view think = format_.think_begin;
  if (may_think_ && !think.empty() && !rest.empty()) {
    if (rest.starts_with(think)) {
      held_.erase(0, first + think.size());
      may_think_ = false;
      go(Where::kThought);
      return true;
    }
    if (!is_end && think.starts_with(rest)) return false;
  }
  // An answer of Llama's that begins like a call is kept until its end shows whether it is one.
  if (has_calls && format_.tools == ToolFormat::kLlama && is_begin_ && !rest.empty() &&
      (rest.front() == '{' || rest.front() == '[')) {
    where_ = Where::kCalls;
    return true;
  }
  const std::string_view call = has_calls ? format_.call_begin() : std::string_view();
  const size_t at = call.empty() ? held_.npos : held_.find(call);
  if (at != held_.npos) {
    add(AnswerPart::Kind::kText, held_.substr(0, at), out);
    held_.erase(0, at);  // its marker stays, it may turn out to be text
    where_ = Where::kCalls;
    searched_ = 0;
    return true;
  }
  const size_t n = held_.size() - (is_end ? 0 : begun(held_, call));
  add(AnswerPart::Kind::kText, held_.substr(0, n), out);
  held_.erase(0, n);
  if (is_end && !space_.empty())
    out.push_back({.kind = AnswerPart::Kind::kText, .text = std::exchange(space_, {}), .call = {}});
  return false;
}

}  // namespace ei
