#include <cctype>
#include <optional>

#include "ei/base/fail.h"
#include "ei/text/answer_parser.h"

namespace ei {
namespace {

constexpr int kMaxDepth = 64;

// Reads what calls consist of; what it does not expect is an Error, which makes text of it all.
class CallReader {
 public:
  explicit CallReader(std::string_view text) : text_(text) {}

  void skip_space() {
    while (!text_.empty() && std::isspace(static_cast<unsigned char>(text_.front())) != 0)
      text_.remove_prefix(1);
  }
  bool is_done() {
    skip_space();
    return text_.empty();
  }
  bool take(std::string_view token) {
    skip_space();
    if (!text_.starts_with(token)) return false;
    text_.remove_prefix(token.size());
    return true;
  }
  void expect(std::string_view token) { require(take(token), "no call: expected {}", token); }

  std::string name(std::string_view also = "_") {
    skip_space();
    size_t n = 0;
    while (n < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[n])) != 0 ||
                                also.find(text_[n]) != also.npos))
      ++n;
    require(n > 0, "no call: expected a name");
    const std::string name(text_.substr(0, n));
    text_.remove_prefix(n);
    return name;
  }

  // JSON up to where its brackets and quotes close.
  std::string_view json() {
    skip_space();
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text_.size(); ++i) {
      const char c = text_[i];
      if (in_string) {
        i += c == '\\';
        in_string = c != '"';
      } else if (c == '"') {
        in_string = true;
      } else if (c == '{' || c == '[') {
        ++depth;
      } else if (c == '}' || c == ']') {
        if (--depth > 0) continue;
        const std::string_view found = text_.substr(0, i + 1);
        text_.remove_prefix(i + 1);
        return found;
      }
      if (depth == 0) break;
    }
    fail("no call: expected an object or a list");
  }

  // A literal of Python's.
  OrderedJson literal(int depth = 0) {
    require(depth < kMaxDepth, "no call: over {} brackets", kMaxDepth);
    if (take("True")) return true;
    if (take("False")) return false;
    if (take("None")) return nullptr;
    skip_space();
    require(!text_.empty(), "no call: expected a value");
    const char first = text_.front();
    if (first == '"' || first == '\'') return string();
    if (take("[") || take("(")) {
      const std::string_view close = first == '[' ? "]" : ")";
      OrderedJson list = OrderedJson::array();
      while (!take(close)) {
        list.push_back(literal(depth + 1));
        if (!take(",")) {
          expect(close);
          break;
        }
      }
      return list;
    }
    if (take("{")) {
      OrderedJson object = OrderedJson::object();
      while (!take("}")) {
        skip_space();
        const std::string key = string();
        expect(":");
        object[key] = literal(depth + 1);
        if (!take(",")) {
          expect("}");
          break;
        }
      }
      return object;
    }
    OrderedJson number = OrderedJson::parse(name("+-._"), nullptr, /*allow_exceptions=*/false);
    require(number.is_number() || number.is_boolean() || number.is_null(),
            "no call: expected a value");
    return number;
  }

 private:
  std::string string() {
    require(!text_.empty() && (text_.front() == '"' || text_.front() == '\''),
            "no call: expected a string");
    const char quote = text_.front();
    text_.remove_prefix(1);
    std::string value;
    while (!text_.empty()) {
      const char c = text_.front();
      text_.remove_prefix(1);
      if (c == quote) return value;
      if (c != '\\' || text_.empty()) {
        value += c;
        continue;
      }
      const char escaped = text_.front();
      text_.remove_prefix(1);
      static constexpr std::string_view kNames = "nrt\\\"'", kValues = "\n\r\t\\\"'";
      if (const size_t at = kNames.find(escaped); at != kNames.npos) {
        value += kValues[at];
      } else {
        value += c;
        value += escaped;
      }
    }
    fail("no call: a string has no end");
  }

  std::string_view text_;
};

// What `read` makes of the text; nothing if it does not end where the text does.
template <class Read>
std::vector<ToolCall> attempted(std::string_view text, Read read) {
  try {
    CallReader reader(text);
    std::vector<ToolCall> calls;
    read(reader, calls);
    require(reader.is_done(), "no call: more text");
    return calls;
  } catch (const Error&) {
    return {};
  }
}

ToolCall call_of(const OrderedJson& json) {
  require(json.is_object() && json.contains("name") && json["name"].is_string(), "no call");
  const OrderedJson* arguments = nullptr;
  for (const char* key : {"arguments", "parameters"})
    if (json.contains(key)) arguments = &json[key];
  if (arguments != nullptr && arguments->is_string()) {
    const auto& text = arguments->get_ref<const std::string&>();
    require(OrderedJson::parse(text, nullptr, false).is_object(), "no call");
    return {json["name"], text};
  }
  require(arguments == nullptr || arguments->is_object() || arguments->is_null(), "no call");
  const bool is_none = arguments == nullptr || arguments->is_null();
  return {json["name"], is_none ? "{}" : arguments->dump()};
}

OrderedJson parsed(std::string_view json) {
  return parse_ordered_json(json, "a call", {.max_depth = kMaxDepth});
}

// Reads the beginning of a call as far as there is text.
class HeadReader {
 public:
  using Is = CallHead::Is;
  explicit HeadReader(std::string_view text) : text_(text) {}

  Is is() const { return is_; }
  size_t size() const { return at_; }
  void expect(std::string_view token) {
    if (!take(token) && is_ == Is::kHead) is_ = Is::kNone;
  }
  // Whether the token follows; nothing is taken from where the text ends.
  bool take(std::string_view token) {
    if (!peek(token)) return false;
    at_ += token.size();
    return true;
  }
  bool peek(std::string_view token) {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
    const std::string_view rest = text_.substr(at_);
    if (is_ != Is::kHead) return false;
    if (rest.size() < token.size() && token.starts_with(rest)) is_ = Is::kCut;
    return rest.starts_with(token);
  }
  // All up to one of these; not all of it if the text ends before.
  std::string until(std::string_view ends, std::string_view never) {
    if (is_ != Is::kHead) return {};
    const size_t end = text_.find_first_of(ends, at_);
    const std::string found(text_.substr(at_, end == text_.npos ? end : end - at_));
    if (end == text_.npos) is_ = Is::kCut;
    if (found.find_first_of(never) != found.npos) is_ = Is::kNone;
    at_ += found.size();
    return found;
  }

 private:
  std::string_view text_;
  size_t at_ = 0;
  Is is_ = Is::kHead;
};

}  // namespace

CallHead read_call_head(std::string_view text, bool named) {
  constexpr size_t kMaxHead = 1024;  // it is read anew whenever there is more text
  HeadReader reader(text.substr(0, kMaxHead));
  CallHead head;
  head.in_list = reader.take("[");
  if (reader.is() == CallHead::Is::kHead && named && !head.in_list && !reader.peek("{")) {
    head.name = reader.until("[{", " \t\r\n\"':,<");
    if (reader.peek("[")) reader.expect("[ARGS]");
  } else {
    reader.expect("{");
    reader.expect("\"name\"");
    reader.expect(":");
    reader.expect("\"");
    head.name = reader.until("\"", "\\");
    reader.expect("\"");
    reader.expect(",");
    if (!reader.take("\"parameters\"")) reader.expect("\"arguments\"");
    reader.expect(":");
  }
  const bool has_object = reader.peek("{");
  head.is = reader.is();
  if (head.is == CallHead::Is::kHead && !has_object) head.is = CallHead::Is::kNone;
  if (head.is == CallHead::Is::kCut && text.size() >= kMaxHead) head.is = CallHead::Is::kNone;
  head.size = reader.size();
  return head;
}

std::vector<ToolCall> parse_json_calls(std::string_view text) {
  return attempted(text, [](CallReader& reader, std::vector<ToolCall>& calls) {
    do {
      const OrderedJson json = parsed(reader.json());
      if (json.is_array()) {
        for (const OrderedJson& one : json) calls.push_back(call_of(one));
      } else {
        calls.push_back(call_of(json));
      }
      if (!reader.take(";")) reader.take(",");
    } while (!reader.is_done());
  });
}

std::vector<ToolCall> parse_pythonic_calls(std::string_view text) {
  return attempted(text, [](CallReader& reader, std::vector<ToolCall>& calls) {
    reader.expect("[");
    do {
      ToolCall call{reader.name("_.-"), {}};
      OrderedJson arguments = OrderedJson::object();
      reader.expect("(");
      while (!reader.take(")")) {
        const std::string key = reader.name();
        reader.expect("=");
        arguments[key] = reader.literal();
        if (!reader.take(",")) {
          reader.expect(")");
          break;
        }
      }
      call.arguments = arguments.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
      calls.push_back(std::move(call));
    } while (reader.take(","));
    reader.expect("]");
  });
}

std::vector<ToolCall> parse_named_calls(std::string_view text) {
  return attempted(text, [](CallReader& reader, std::vector<ToolCall>& calls) {
    do {
      ToolCall call{reader.name("_.-"), {}};
      reader.take("[ARGS]");
      const OrderedJson arguments = parsed(reader.json());
      require(arguments.is_object(), "no call");
      call.arguments = arguments.dump();
      calls.push_back(std::move(call));
      reader.take("[TOOL_CALLS]");
    } while (!reader.is_done());
  });
}

}  // namespace ei
