#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ei/io/json.h"

namespace ei {

// How a model writes calls of tools. Several in one answer are one after the other.
enum class ToolFormat {
  kNone,
  kHermes,  // <tool_call>{"name": ..., "arguments": {...}}</tool_call>: Qwen, Hermes
  kLlama,   // the whole answer: {"name": ..., "parameters": {...}}; ... or [name(key='value'), ...]
  kMistral,  // [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...] or [TOOL_CALLS]name{...}
  kPangu,    // [unused11][{"name": ..., "arguments": {...}}, ...][unused12]
};

// What a model writes beside text, as its chat template shows.
struct AnswerFormat {
  ToolFormat tools = ToolFormat::kNone;
  std::string think_begin, think_end;  // around what it thinks; empty: it does not say

  static AnswerFormat of_template(std::string_view source);
  // Where calls begin and end; empty: with the answer.
  std::string_view call_begin() const;
  std::string_view call_end() const;
};

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON, an object
};

struct AnswerPart {
  // kArguments: more of the arguments of the last call, in `text`.
  enum class Kind { kText, kReasoning, kCall, kArguments } kind = Kind::kText;
  std::string text;
  ToolCall call;  // kCall: what of its arguments has come
};

// Takes an answer apart as it comes. A call is one once it names a tool that there is and its
// arguments begin as an object of JSON: these are then what is written, up to where its brackets
// close, what cannot be JSON or the answer's end. A call of another form is one if it is
// well-formed as a whole. All else stays text. A thought stands before everything else. White space
// around calls and thoughts is left out.
class AnswerParser {
 public:
  struct Options {
    bool in_thought = false;         // the prompt ends with think_begin
    bool is_form = false;            // the answer is calls, perhaps without call_begin, or text
    std::vector<std::string> tools;  // names; none: there are no calls
    bool one_call = false;           // what follows the first is left out
  };
  AnswerParser(AnswerFormat format, Options options);

  // What is certain by now.
  std::vector<AnswerPart> push(std::string_view text);
  std::vector<AnswerPart> finish();
  // The one call that is wanted is there.
  bool is_done() const { return options_.one_call && has_calls_ && where_ != Where::kArguments; }

 private:
  enum class Where { kText, kThought, kCalls, kArguments, kAfterCall };
  bool step(bool is_end, std::vector<AnswerPart>& out);
  bool step_text(bool is_end, std::vector<AnswerPart>& out);
  bool step_thought(bool is_end, std::vector<AnswerPart>& out);
  bool step_calls(bool is_end, std::vector<AnswerPart>& out);
  bool step_arguments(std::vector<AnswerPart>& out);
  bool step_after_call(bool is_end);
  void go(Where where);
  void add(AnswerPart::Kind kind, std::string text, std::vector<AnswerPart>& out);
  void add_call(ToolCall call, std::vector<AnswerPart>& out);
  std::vector<ToolCall> calls_of(std::string_view text) const;
  bool knows(std::string_view name) const;
  bool has_tools() const;

  const AnswerFormat format_;
  const Options options_;
  Where where_;
  std::string held_;     // not yet certain
  std::string space_;    // white space that is text if text follows
  size_t searched_ = 0;  // of what is held, for the end of calls
  bool skips_space_ = false;
  bool is_begin_ = true;  // nothing but white space and thoughts was written
  bool may_think_ = true;
  bool has_calls_ = false;
  // Of the calls that are being read.
  bool is_whole_ = false;  // whether they are any shows at their end
  bool in_list_ = false;
  int depth_ = 0;  // of brackets in arguments
  bool in_string_ = false, is_escaped_ = false;
};

// What of `text` comes before a call's arguments: {"name": ..., "arguments": or, if they can be
// `named`, name or name[ARGS].
struct CallHead {
  enum class Is { kHead, kCut, kNone } is = Is::kNone;  // kCut: perhaps, with more text
  std::string name;
  size_t size = 0;  // bytes
  bool in_list = false;
};
CallHead read_call_head(std::string_view text, bool named);

// The calls that `text` consists of, one or a list; none if it is anything else.
std::vector<ToolCall> parse_json_calls(std::string_view text);      // objects, ';' or ',' between
std::vector<ToolCall> parse_pythonic_calls(std::string_view text);  // [name(key=literal, ...), ...]
std::vector<ToolCall> parse_named_calls(std::string_view text);     // name{...}, name[ARGS]{...}

}  // namespace ei
