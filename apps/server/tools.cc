#include "apps/server/tools.h"

#include <fmt/format.h>

#include "apps/server/read_request.h"
#include "ei/base/fail.h"
#include "ei/grammar/json_schema.h"

namespace ei::server {
namespace {

constexpr size_t kMaxTools = 4096;

// {"type": "function", "function": {"name": ...}}
bool is_function(const OrderedJson& tool) {
  return tool.is_object() && tool.value("type", OrderedJson("function")) == "function" &&
         given(tool, "function") && tool["function"].is_object() &&
         given(tool["function"], "name") && tool["function"]["name"].is_string();
}

// A function whose arguments are an object, as calls have them.
void check_tool(const OrderedJson& tool, const std::string& where) {
  if (!is_function(tool)) {
    const bool has_type = tool.is_object() && given(tool, "type");
    bad("tools",
        fmt::format("'{}' must be {{\"type\": \"function\", \"function\": {{\"name\": ...}}}}{}.",
                    where, has_type ? fmt::format("; its type is {}", shown(type_of(tool))) : ""));
  }
  const OrderedJson& function = tool["function"];
  if (!given(function, "parameters")) return;
  const OrderedJson& parameters = function["parameters"];
  const bool has_type = parameters.is_object() && given(parameters, "type");
  if (!parameters.is_object() || (has_type && parameters["type"] != "object"))
    bad("tools",
        fmt::format("'{}.function.parameters' must be a schema of \"type\": \"object\".", where));
}

int32_t arguments_rule(grammar::Grammar& g, grammar::JsonRules& rules,
                       const OrderedJson& function) {
  if (!given(function, "parameters") || function["parameters"].empty()) return rules.any_object();
  const std::string name = shown(function["name"].get<std::string>());
  try {
    const int32_t rule = rules.schema(function["parameters"]);
    require(g.begins_with(rule, '{'), "they allow more than objects");
    return rule;
  } catch (const Error& error) {
    fail("the parameters of {}: {}", name, error.what());
  }
}

// One call, or several.
int32_t calls_rule(grammar::Grammar& g, grammar::JsonRules& rules, const AnswerForm& form,
                   ToolFormat tools) {
  constexpr int32_t kEnd = grammar::kEnd;
  const bool is_hermes = tools == ToolFormat::kHermes, is_llama = tools == ToolFormat::kLlama;
  std::vector<int32_t> calls;
  for (const OrderedJson& function : form.functions) {
    const int32_t arguments = arguments_rule(g, rules, function);
    calls.push_back(g.text(fmt::format(R"({{"name": {}, "{}": )", function["name"].dump(),
                                       is_llama ? "parameters" : "arguments"),
                           g.called(arguments, g.text("}", kEnd))));
  }
  const int32_t call = g.any_of(calls);
  const std::string_view begin = is_hermes ? "<tool_call>\n" : is_llama ? "" : "[";
  const std::string_view end = is_hermes ? "\n</tool_call>" : is_llama ? "" : "]";
  const std::string_view between = is_hermes  ? "\n</tool_call>\n<tool_call>\n"
                                   : is_llama ? "; "
                                              : ", ";
  const int32_t after = g.node();
  g.free_to(after, g.text(end, kEnd));
  const int32_t first = g.called(call, after);
  if (!form.one_call) g.free_to(after, g.text(between, first));
  return g.text(begin, first);
}

}  // namespace

void bad(const std::string& param, const std::string& what) {
  throw ApiError(400, "invalid_request_error", what, param);
}

bool given(const OrderedJson& json, std::string_view key) {
  const auto it = json.find(key);
  return it != json.end() && !it->is_null();
}

OrderedJson tools_of(const OrderedJson& json, const RequestDefaults& defaults) {
  if (!given(json, "tools") || json["tools"].empty()) return {};
  const OrderedJson& tools = json["tools"];
  if (given(json, "tool_choice") && json["tool_choice"] == "none") return {};
  if (!tools.is_array() || tools.size() > kMaxTools)
    bad("tools", fmt::format("'tools' must be an array of at most {}.", kMaxTools));
  if (!defaults.tools)
    bad("tools",
        "This model's chat template knows no tools; leave 'tools' out or set 'tool_choice' to "
        "\"none\".");
  for (size_t i = 0; i < tools.size(); ++i) check_tool(tools[i], fmt::format("tools[{}]", i));
  return tools;
}

void read_tool_choice(const OrderedJson& json, ApiRequest& out) {
  const OrderedJson none = OrderedJson::array();
  const auto found = out.conversation.variables.find("tools");
  const OrderedJson& tools = found == out.conversation.variables.end() ? none : *found;
  OrderedJson functions = OrderedJson::array();
  for (const OrderedJson& tool : tools) {
    functions.push_back(tool["function"]);
    out.parts.tools.push_back(tool["function"]["name"]);
  }
  out.parts.one_call = !OrderedFields(json, "request").boolean("parallel_tool_calls", true);
  out.parts.is_form = out.form.kind != AnswerForm::Kind::kAny;
  const OrderedJson choice = given(json, "tool_choice") ? json["tool_choice"] : OrderedJson("auto");
  if (choice == "none") return;
  if (choice == "auto") {
    if (out.parts.is_form) out.form.functions = std::move(functions);
    out.form.one_call = out.parts.one_call;
    return;
  }
  if (choice != "required") {
    if (!is_function(choice))
      bad("tool_choice",
          "'tool_choice' must be \"auto\", \"none\", \"required\" or {\"type\": \"function\", "
          "\"function\": {\"name\": ...}}.");
    const OrderedJson& name = choice["function"]["name"];
    std::erase_if(functions.get_ref<OrderedJson::array_t&>(),
                  [&](const OrderedJson& function) { return function["name"] != name; });
    out.parts.one_call = true;
  }
  if (functions.empty())
    bad("tool_choice", "'tool_choice' asks for a function that 'tools' lacks.");
  if (out.form.kind != AnswerForm::Kind::kAny)
    bad("tool_choice", "'tool_choice' and 'response_format' cannot both say what is written.");
  out.form = {AnswerForm::Kind::kCalls, {}, std::move(functions), out.parts.one_call};
  out.parts.is_form = true;
}

void read_response_format(const OrderedJson& json, ApiRequest& out) {
  if (!given(json, "response_format")) return;
  const OrderedJson& format = json["response_format"];
  const std::string type = format.is_object() && given(format, "type") && format["type"].is_string()
                               ? format["type"]
                               : "";
  if (type == "text") return;
  if (type == "json_object") {
    out.form.kind = AnswerForm::Kind::kObject;
  } else if (type == "json_schema") {
    const char* kParam = "response_format.json_schema.schema";
    if (!given(format, "json_schema") || !format["json_schema"].is_object() ||
        !given(format["json_schema"], "schema"))
      bad(kParam, fmt::format("'{}' is missing.", kParam));
    out.form.kind = AnswerForm::Kind::kSchema;
    out.form.schema = format["json_schema"]["schema"];
  } else {
    bad("response_format",
        "'response_format' must be {\"type\": \"text\"}, \"json_object\" or \"json_schema\".");
  }
}

std::string param_of(const AnswerForm& form) {
  if (form.kind == AnswerForm::Kind::kAny) return "logit_bias";
  return form.kind == AnswerForm::Kind::kCalls ? "tools" : std::string(form.field);
}

void check_form(const ApiRequest& request) {
  if (request.form.kind == AnswerForm::Kind::kAny) return;
  const char* kWhat = "cannot be had with an answer whose form is given";
  if (request.request.ignore_eos) bad("ignore_eos", fmt::format("'ignore_eos' {}.", kWhat));
  if (request.options.min_tokens > 0) bad("min_tokens", fmt::format("'min_tokens' {}.", kWhat));
}

void read_parts(std::span<const int32_t> prompt, const Tokenizer& tokenizer,
                const AnswerFormat& format, ApiRequest& request) {
  const auto shows = [&](std::string_view marker) {
    const auto id = tokenizer.token_id(marker);
    return id && tokenizer.is_special(*id);
  };
  const bool has_tools = !request.parts.tools.empty();
  request.options.show_special =
      !request.parts.is_form &&
      ((has_tools && (shows(format.call_begin()) || shows(format.call_end()))) ||
       (!format.think_begin.empty() && shows(format.think_begin)));
  if (format.think_begin.empty() || request.form.kind != AnswerForm::Kind::kAny) return;
  const std::string end = tokenizer.decode(prompt.last(std::min<size_t>(prompt.size(), 8)), false);
  const size_t last = end.find_last_not_of(" \n") + 1;
  request.parts.in_thought = std::string_view(end).substr(0, last).ends_with(format.think_begin);
}

grammar::Grammar grammar_of(const AnswerForm& form, ToolFormat tools) {
  using Kind = AnswerForm::Kind;
  grammar::Grammar g;
  grammar::JsonRules rules(g);
  std::vector<int32_t> choices;
  if (form.kind == Kind::kObject) choices.push_back(rules.any_object());
  if (form.kind == Kind::kSchema) choices.push_back(rules.schema(form.schema));
  if (!form.functions.empty()) choices.push_back(calls_rule(g, rules, form, tools));
  g.start = g.any_of(choices);
  return g;
}

std::shared_ptr<grammar::TokenGrammar> Grammars::of(const AnswerForm& form) {
  if (form.kind == AnswerForm::Kind::kAny) return nullptr;
  constexpr size_t kMaxKnown = 16, kMaxKeyBytes = 256 << 10;
  const std::string key = fmt::format("{}{}{}{}", int(form.kind), form.one_call, form.schema.dump(),
                                      form.functions.dump());
  {
    const std::lock_guard lock(mutex_);
    if (const auto it = known_.find(key); it != known_.end()) return it->second;
  }
  const std::string param = param_of(form);
  if (key.size() > kMaxKeyBytes)
    bad(param, fmt::format("'{}' has schemas of {} bytes, at most {} can be followed.", param,
                           key.size(), kMaxKeyBytes));
  std::shared_ptr<grammar::TokenGrammar> made;
  try {
    made = std::make_shared<grammar::TokenGrammar>(grammar_of(form, tools_), tokens_);
  } catch (const Error& error) {
    bad(param, fmt::format("'{}': {}.", param, error.what()));
  }
  const std::lock_guard lock(mutex_);
  if (known_.size() >= kMaxKnown) known_.clear();
  known_[key] = made;
  return made;
}

}  // namespace ei::server
