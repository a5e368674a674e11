#include "apps/server/request.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <random>

#include "apps/server/read_request.h"
#include "apps/server/tools.h"
#include "ei/io/json.h"
#include "ei/policy/named.h"

namespace ei::server {
namespace {

constexpr int kMaxDepth = 256;
constexpr size_t kMaxValueBytes = 128 << 20;  // a million token ids take a quarter of it
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxLogitBias = 1024;
constexpr size_t kMaxInputs = 2048;
constexpr int64_t kMaxTokens = int64_t{1} << 30;

// What two fields say must not contradict each other.
void exclude(const std::string& param, bool both, const char* what) {
  if (both) bad(param, fmt::format("'{}' {}.", param, what));
}

std::vector<int32_t> ids_of(const OrderedJson& json, const std::string& param) {
  std::vector<int32_t> ids;
  ids.reserve(json.size());
  for (const OrderedJson& id : json) {
    const bool is_whole = id.is_number() && id.get<double>() == std::trunc(id.get<double>());
    if (!is_whole || id.get<double>() < 0 || id.get<double>() > INT32_MAX)
      bad(param, fmt::format("'{}' must be token ids: integers from 0 on.", param));
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

// A string, token ids, or a list of either.
std::vector<Prompt> prompts_of(const OrderedJson& json, const std::string& param) {
  if (!json.contains(param)) bad(param, fmt::format("'{}' is missing.", param));
  const OrderedJson& prompt = json[param];
  std::vector<Prompt> prompts;
  if (prompt.is_string()) {
    prompts.emplace_back(prompt.get<std::string>());
  } else if (prompt.is_array() && !prompt.empty() && prompt[0].is_number()) {
    prompts.emplace_back(ids_of(prompt, param));
  } else if (prompt.is_array() && !prompt.empty()) {
    for (const OrderedJson& p : prompt) {
      if (p.is_array()) {
        prompts.emplace_back(ids_of(p, param));
      } else {
        prompts.emplace_back(text_of(p, param));
      }
    }
  } else {
    bad(param,
        fmt::format("'{}' must be a string, an array of token ids, or an array of either.", param));
  }
  return prompts;
}

// The content for a template: null, a string or a list of text parts, of which there is at least
// one. What a model refused with is text of it as well.
OrderedJson content_of(const OrderedJson& content, const std::string& param) {
  if (content.is_null() || content.is_string()) return content;
  if (!content.is_array() || content.size() > kMaxParts)
    bad(param,
        fmt::format("'{}' must be a string or an array of at most {} parts.", param, kMaxParts));
  OrderedJson parts = OrderedJson::array();
  for (const OrderedJson& part : content) {
    const std::string type =
        part.is_object() && given(part, "type") && part["type"].is_string() ? part["type"] : "";
    const char* key = type == "refusal" ? "refusal" : "text";
    if (!part.is_object() || (type != "text" && type != "refusal") || !part.contains(key))
      bad(param,
          "Content parts must be {\"type\": \"text\", \"text\": ...}: this model reads text only.");
    parts.push_back({{"type", "text"}, {"text", text_of(part[key], param + "." + key)}});
  }
  if (parts.empty()) return nullptr;
  return parts;
}

// In OpenAI's form: {"id", "type": "function", "function": {"name", "arguments"}}, arguments a
// string of JSON or what it says.
void check_calls(const OrderedJson& calls, const std::string& param) {
  if (!calls.is_array() || calls.size() > kMaxCalls)
    bad(param, fmt::format("'{}' must be an array of at most {} calls.", param, kMaxCalls));
  for (const OrderedJson& call : calls) {
    const bool ok = call.is_object() && given(call, "function") && call["function"].is_object() &&
                    given(call["function"], "name") && call["function"]["name"].is_string();
    if (!ok)
      bad(param, fmt::format("'{}' must hold {{\"type\": \"function\", \"function\": {{\"name\": "
                             "..., \"arguments\": ...}}}}.",
                             param));
    const OrderedJson& function = call["function"];
    if (given(function, "arguments") && !function["arguments"].is_string() &&
        !function["arguments"].is_object())
      bad(param, fmt::format("'{}': 'arguments' must be a string or an object.", param));
  }
}

// Fields that are not named here are the template's business, and handed on in the client's order.
OrderedJson message_of(const OrderedJson& json, const std::string& param, bool tools) {
  if (!json.is_object()) bad(param, fmt::format("'{}' must be an object.", param));
  const OrderedFields fields(json, param);
  std::string role = fields.string("role");
  if (role == "developer") role = "system";
  if (role != "system" && role != "user" && role != "assistant" && !(tools && role == "tool"))
    bad(param + ".role",
        fmt::format("'{}.role' is '{}'; this model knows system, developer, user{} assistant.",
                    param, role, tools ? ", tool and" : " and"));
  OrderedJson message = {{"role", role}};
  message["content"] =
      content_of(json.contains("content") ? json["content"] : OrderedJson(), param + ".content");
  for (const auto& [key, value] : json.items()) {
    const bool is_empty = value.is_null() || (value.is_array() && value.empty());
    if (key == "role" || key == "content" || is_empty) continue;
    if (key == "audio" || key == "function_call")
      bad(param + "." + key, fmt::format("'{}.{}' is not supported.", param, key));
    if (key == "refusal") {  // as OpenAI's API answers; it is what was said
      if (message["content"].is_null()) message["content"] = text_of(value, param + ".refusal");
      continue;
    }
    if (key == "tool_calls") {
      require_tools(tools, param + ".tool_calls");
      check_calls(value, param + ".tool_calls");
    }
    message[key] = key == "name" || key == "reasoning_content" || key == "tool_call_id"
                       ? OrderedJson(text_of(value, param + "." + key))
                       : value;
  }
  if (message["content"].is_null() && role != "assistant") {
    if (!json.contains("content"))
      bad(param + ".content", fmt::format("'{}.content' is missing.", param));
    message["content"] = "";
  }
  return message;
}

std::vector<std::string> stops_of(const OrderedJson& json) {
  std::vector<std::string> stops;
  if (!json.contains("stop") || json["stop"].is_null()) return stops;
  const OrderedJson& stop = json["stop"];
  if (stop.is_string()) {
    stops.push_back(stop.get<std::string>());
  } else if (stop.is_array()) {
    for (const OrderedJson& s : stop) stops.push_back(text_of(s, "stop"));
  } else {
    bad("stop", "'stop' must be a string or an array of strings.");
  }
  if (stops.size() > kMaxStops)
    bad("stop",
        fmt::format("'stop' has {} strings, at most {} are allowed.", stops.size(), kMaxStops));
  for (const std::string& s : stops)
    if (s.empty() || s.size() > kMaxStopBytes)
      bad("stop", fmt::format("Every 'stop' string must have 1 to {} bytes.", kMaxStopBytes));
  return stops;
}

std::vector<LogitBias> bias_of(const OrderedJson& json) {
  std::vector<LogitBias> bias;
  if (!json.contains("logit_bias") || json["logit_bias"].is_null()) return bias;
  const OrderedJson& biases = json["logit_bias"];
  if (!biases.is_object() || biases.size() > kMaxLogitBias)
    bad("logit_bias",
        fmt::format("'logit_bias' must be an object of at most {} token ids.", kMaxLogitBias));
  for (const auto& [key, value] : biases.items()) {
    int32_t id = -1;
    const auto end = key.data() + key.size();
    if (std::from_chars(key.data(), end, id).ptr != end || id < 0)
      bad("logit_bias", "The keys of 'logit_bias' must be token ids.");
    if (!value.is_number() || !(value.get<double>() >= -100 && value.get<double>() <= 100))
      bad("logit_bias", "The values of 'logit_bias' must be numbers from -100 to 100.");
    const float x = value.get<float>();
    bias.push_back({id, x <= -100 ? -INFINITY : x});
  }
  return bias;
}

// The policy that goes by the name a field gives: the server's own, with its settings, or another.
template <class Policy, class Find>
void read_named(const OrderedFields& fields, const char* key, Find find,
                std::span<const Named<Policy>> all, Policy& policy) {
  if (!fields.has(key)) return;
  const std::string name = fields.string(key);
  const Policy* found = find(name);
  if (found == nullptr) {
    std::string names;
    for (const Named<Policy>& named : all) {
      if (!names.empty()) names += ", ";
      names += named.name;
    }
    bad(key, fmt::format("'{}' is '{}', expected one of {}.", key, name, names));
  }
  if (name_of(policy) != name) policy = *found;
}

void read_policy(const OrderedFields& fields, bool on_gpu, Request& request) {
  const auto find = [&](std::string_view name) { return find_prefill(name, on_gpu); };
  read_named(fields, "prefill", find, prefill_policies(), request.prefill);
  read_named(fields, "decode", find_decode, decode_policies(), request.decode);
  if (request.decode.voter == Voter::kRepeat)
    bad("decode",
        fmt::format("'decode' is '{}', for which a prompt is read twice at once, and other answers "
                    "would wait for it; use it in the program's run and eval.",
                    name_of(request.decode)));
  exclude("base_budget", fields.has("base_budget") && request.prefill.is_dense(),
          "is of no use where 'prefill' is dense");
  exclude("budget", fields.has("budget") && request.decode.is_full(),
          "is of no use where 'decode' is full");
  if (fields.has("base_budget"))
    request.prefill.budget.base = static_cast<float>(fields.integer("base_budget", 1, kMaxTokens));
  if (fields.has("budget")) request.decode.budget = fields.integer("budget", 1, kMaxTokens);
  validate(request.prefill);
  validate(request.decode);
}

void read_sampling(const OrderedFields& fields, const RequestDefaults& defaults, Request& request) {
  SamplingParams p = defaults.sampling;
  p.temperature = static_cast<float>(fields.number("temperature", 0, 100, p.temperature));
  p.top_p = static_cast<float>(fields.number("top_p", 0, 1, p.top_p));
  p.min_p = static_cast<float>(fields.number("min_p", 0, 1, p.min_p));
  p.repetition_penalty =
      static_cast<float>(fields.number("repetition_penalty", 0.01, 100, p.repetition_penalty));
  p.presence_penalty = static_cast<float>(fields.number("presence_penalty", -2, 2, 0));
  p.frequency_penalty = static_cast<float>(fields.number("frequency_penalty", -2, 2, 0));
  p.top_k =
      static_cast<int32_t>(std::max<int64_t>(0, fields.integer("top_k", -1, INT32_MAX, p.top_k)));
  p.seed = fields.has("seed") ? static_cast<uint64_t>(fields.integer("seed", INT64_MIN, INT64_MAX))
                              : std::random_device()();
  validate(p);
  request.sampling = p;
}

void check_min_tokens(const ApiRequest& out) {
  exclude("min_tokens", out.options.min_tokens > out.request.max_tokens,
          "is more than may be written");
}

// The fields that chats and completions share.
ApiRequest read_common(const OrderedJson& json, const OrderedFields& fields,
                       const RequestDefaults& defaults) {
  ApiRequest out;
  out.request.prefill = defaults.prefill;
  out.request.decode = defaults.decode;
  read_policy(fields, defaults.on_gpu, out.request);
  read_sampling(fields, defaults, out.request);
  out.request.stop = stops_of(json);
  out.request.ignore_eos = fields.boolean("ignore_eos", false);
  out.options.logit_bias = bias_of(json);
  out.options.min_tokens = fields.integer("min_tokens", 0, kMaxTokens, 0);
  out.options.reuse = fields.boolean("cache_prompt", true);
  if (fields.has("stop_token_ids")) {
    if (!json["stop_token_ids"].is_array() || json["stop_token_ids"].size() > kMaxStops * 8)
      bad("stop_token_ids", "'stop_token_ids' must be an array of at most 128 token ids.");
    out.options.stop_tokens = ids_of(json["stop_token_ids"], "stop_token_ids");
  }
  out.n = out.best_of = fields.integer("n", 1, defaults.max_choices, 1);
  out.stream = fields.boolean("stream", false);
  out.return_progress = fields.boolean("return_progress", false);
  exclude("return_progress", out.return_progress && !out.stream, "needs 'stream' to be true");
  out.timeout_ms = fields.integer("timeout_ms", 0, kMaxTokens, 0);
  if (fields.has("stream_options")) {
    exclude("stream_options", !out.stream, "needs 'stream' to be true");
    const OrderedFields options(json["stream_options"], "stream_options");
    for (const auto& [key, value] : json["stream_options"].items())
      if (key != "include_usage" && key != "include_obfuscation" && options.boolean(key, false))
        bad("stream_options", fmt::format("'stream_options.{}' is not supported.", key));
    out.include_usage = options.boolean("include_usage", false);
  }
  read_response_format(json, out);
  return out;
}

}  // namespace

OrderedJson parse_body(std::string_view body, const RequestDefaults& defaults, Endpoint endpoint,
                       std::vector<std::string>& unknown) {
  OrderedJson json = parse_ordered_json(body, "request",
                                        {.max_bytes = defaults.max_json_bytes,
                                         .max_depth = kMaxDepth,
                                         .max_value_bytes = kMaxValueBytes});
  if (!json.is_object()) bad("", "The request must be a JSON object.");
  unknown = check_fields(json, endpoint);
  return json;
}

std::string text_of(const OrderedJson& json, const std::string& param) {
  if (!json.is_string()) bad(param, fmt::format("'{}' must be a string.", param));
  return json.get<std::string>();
}

Conversation read_conversation(const OrderedJson& json, const RequestDefaults& defaults) {
  if (!json.contains("messages") || !json["messages"].is_array() || json["messages"].empty())
    bad("messages", "'messages' must be an array of at least one message.");
  if (json["messages"].size() > kMaxMessages)
    bad("messages", fmt::format("'messages' has {} entries, at most {} are allowed.",
                                json["messages"].size(), kMaxMessages));
  Conversation out{.messages = OrderedJson::array(), .variables = OrderedJson::object()};
  for (const OrderedJson& message : json["messages"])
    out.messages.push_back(
        message_of(message, fmt::format("messages[{}]", out.messages.size()), defaults.tools));
  const OrderedFields fields(json, "request");
  if (fields.has("chat_template_kwargs")) {
    out.variables = fields.at("chat_template_kwargs");
    if (!out.variables.is_object())
      bad("chat_template_kwargs", "'chat_template_kwargs' must be an object.");
  }
  out.add_generation_prompt = fields.boolean("add_generation_prompt", true);
  if (const auto tools = tools_of(json, defaults); !tools.empty()) {
    exclude("tools", out.variables.contains("tools"),
            "and those of 'chat_template_kwargs' are too many");
    out.variables["tools"] = tools;
  }
  return out;
}

std::string string_at(const OrderedJson& json, const char* key, const std::string& param) {
  if (!json.is_object() || !json.contains(key))
    bad(param, fmt::format("'{}.{}' is missing.", param, key));
  return text_of(json[key], fmt::format("{}.{}", param, key));
}

std::string type_of(const OrderedJson& json) {
  const bool has_type = json.is_object() && json.contains("type") && json["type"].is_string();
  return has_type ? json["type"].get<std::string>() : "";
}

void require_tools(bool tools, const std::string& param) {
  if (!tools) bad(param, "This model's chat template knows no tools.");
}

OrderedJson shared_fields(const OrderedJson& json, Endpoint endpoint) {
  OrderedJson shared = OrderedJson::object();
  const unsigned both = endpoint | kChat;
  for (const FieldRule& rule : field_rules())
    if ((rule.endpoints & both) == both && rule.use == FieldRule::Use::kObeyed &&
        rule.name != "messages" && given(json, rule.name))
      shared[std::string(rule.name)] = json[std::string(rule.name)];
  return shared;
}

ApiRequest read_chat(const OrderedJson& json, const RequestDefaults& defaults) {
  const OrderedFields fields(json, "request");
  ApiRequest out = read_common(json, fields, defaults);
  out.conversation = read_conversation(json, defaults);
  read_tool_choice(json, out);
  check_form(out);
  out.request.max_tokens = fields.integer("max_tokens", 1, kMaxTokens, defaults.chat_max_tokens);
  const int64_t most =
      fields.integer("max_completion_tokens", 1, kMaxTokens, out.request.max_tokens);
  exclude("max_tokens", fields.has("max_tokens") && most != out.request.max_tokens,
          "and 'max_completion_tokens' differ");
  out.request.max_tokens = most;
  check_min_tokens(out);
  const int64_t top = fields.integer("top_logprobs", 0, 20, 0);
  if (fields.boolean("logprobs", false)) {
    out.options.top_logprobs = top;
  } else if (top > 0) {
    bad("top_logprobs", "'top_logprobs' needs 'logprobs' to be true.");
  }
  return out;
}

ApiRequest parse_chat_request(std::string_view body, const RequestDefaults& defaults) {
  return checked([&] {
    std::vector<std::string> unknown;
    ApiRequest out = read_chat(parse_body(body, defaults, kChat, unknown), defaults);
    out.unknown_fields = std::move(unknown);
    return out;
  });
}

ApiRequest parse_completion_request(std::string_view body, const RequestDefaults& defaults) {
  return checked([&] {
    std::vector<std::string> unknown;
    const OrderedJson json = parse_body(body, defaults, kCompletions, unknown);
    const OrderedFields fields(json, "request");
    ApiRequest out = read_common(json, fields, defaults);
    out.dialect = Dialect::kCompletions;
    out.unknown_fields = std::move(unknown);
    out.request.max_tokens = fields.integer("max_tokens", 0, kMaxTokens, 16);
    check_min_tokens(out);
    check_form(out);
    out.echo = fields.boolean("echo", false);
    out.add_special_tokens = fields.boolean("add_special_tokens", true);
    out.best_of = fields.integer("best_of", 1, defaults.max_choices, out.n);
    exclude("best_of", out.best_of < out.n, "is less than 'n'");
    exclude("best_of", out.best_of > out.n && out.stream, "cannot be streamed");
    if (fields.has("logprobs")) {
      // An integer in the legacy API; some clients send a boolean.
      out.options.top_logprobs = json["logprobs"].is_boolean()
                                     ? (json["logprobs"].get<bool>() ? 0 : -1)
                                     : fields.integer("logprobs", 0, 20);
    }
    out.options.score_prompt = out.echo && out.options.top_logprobs >= 0;
    if (out.request.max_tokens == 0 && !out.echo)
      bad("max_tokens", "'max_tokens' is 0, which is of use with 'echo' only.");

    out.prompts = prompts_of(json, "prompt");
    if (static_cast<int64_t>(out.prompts.size()) > defaults.max_choices / out.best_of)
      bad("prompt", fmt::format("{} prompts times {} answers are more than {}.", out.prompts.size(),
                                out.best_of, defaults.max_choices));
    return out;
  });
}

Given<EmbeddingRequest> parse_embeddings_request(std::string_view body,
                                                 const RequestDefaults& defaults) {
  return checked([&] {
    Given<EmbeddingRequest> out;
    const OrderedJson json = parse_body(body, defaults, kEmbeddings, out.unknown_fields);
    const OrderedFields fields(json, "request");
    EmbeddingRequest& request = out.value;
    request.inputs = prompts_of(json, "input");
    if (request.inputs.size() > kMaxInputs)
      bad("input", fmt::format("'input' has {} texts, at most {} are allowed.",
                               request.inputs.size(), kMaxInputs));
    request.request.prefill = defaults.prefill;
    read_policy(fields, defaults.on_gpu, request.request);
    request.request.decode = DecodePolicy::full();
    request.request.max_tokens = 0;
    request.add_special_tokens = fields.boolean("add_special_tokens", true);
    request.dimensions = fields.integer("dimensions", 1, defaults.max_dimensions, 0);
    request.timeout_ms = fields.integer("timeout_ms", 0, kMaxTokens, 0);
    const auto one_of = [&](const char* key, const char* usual, const char* other) {
      const std::string value = fields.has(key) ? fields.string(key) : usual;
      if (value != usual && value != other)
        bad(key, fmt::format("'{}' is '{}', expected {} or {}.", key, value, usual, other));
      return value == other;
    };
    request.base64 = one_of("encoding_format", "float", "base64");
    if (one_of("pooling", "last", "mean")) request.pooling = SequenceOptions::Pooling::kMean;
    return out;
  });
}

Given<Conversation> parse_conversation_request(std::string_view body,
                                               const RequestDefaults& defaults) {
  return checked([&] {
    Given<Conversation> out;
    out.value =
        read_conversation(parse_body(body, defaults, kTemplate, out.unknown_fields), defaults);
    return out;
  });
}

Given<std::variant<Text, Conversation>> parse_text_request(std::string_view body,
                                                           const RequestDefaults& defaults) {
  return checked([&] {
    Given<std::variant<Text, Conversation>> out;
    const OrderedJson json = parse_body(body, defaults, kTokenize, out.unknown_fields);
    const OrderedFields fields(json, "request");
    const char* source = nullptr;
    for (const char* key : {"messages", "content", "prompt", "text"}) {
      if (!fields.has(key)) continue;
      exclude(key, source != nullptr, "is one text too many");
      source = key;
    }
    if (source == nullptr) bad("content", "'content' is missing.");
    const bool special = fields.boolean("add_special_tokens", true);
    exclude("add_special",
            fields.has("add_special_tokens") && fields.boolean("add_special", special) != special,
            "and 'add_special_tokens' differ");
    if (fields.has("messages")) {
      for (const char* key : {"add_special_tokens", "add_special"})
        exclude(key, fields.boolean(key, false),
                "is of no use with 'messages': the template adds them");
      out.value = read_conversation(json, defaults);
      return out;
    }
    for (const char* key :
         {"tools", "tool_choice", "chat_template_kwargs", "add_generation_prompt"})
      exclude(key, fields.has(key), "needs 'messages'");
    out.value = Text{text_of(json[source], source), fields.boolean("add_special", special)};
    return out;
  });
}

Given<std::vector<int32_t>> parse_tokens_request(std::string_view body,
                                                 const RequestDefaults& defaults) {
  return checked([&] {
    Given<std::vector<int32_t>> out;
    const OrderedJson json = parse_body(body, defaults, kDetokenize, out.unknown_fields);
    if (!json.contains("tokens") || !json["tokens"].is_array())
      bad("tokens", "'tokens' must be an array of token ids.");
    out.value = ids_of(json["tokens"], "tokens");
    return out;
  });
}

}  // namespace ei::server
