#include "apps/server/request.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <random>

#include "ei/base/fail.h"
#include "ei/io/json.h"

namespace ei::server {
namespace {

constexpr int kMaxDepth = 32;
constexpr size_t kMaxMessages = 16384;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxLogitBias = 1024;
constexpr int64_t kMaxTokens = int64_t{1} << 30;

[[noreturn]] void bad(const std::string& param, const std::string& what) {
  throw ApiError(400, "invalid_request_error", what, param);
}

// Runs `f`; what it throws is a client's mistake.
template <class F>
auto checked(F f) {
  try {
    return f();
  } catch (const ApiError&) {
    throw;
  } catch (const Error& error) {
    throw ApiError(400, "invalid_request_error", error.what());
  }
}

Json parse(std::string_view body, const RequestDefaults& defaults) {
  Json json =
      parse_json(body, "request", {.max_bytes = defaults.max_json_bytes, .max_depth = kMaxDepth});
  if (!json.is_object()) bad("", "The request must be a JSON object.");
  return json;
}

std::string text_of(const Json& json, const std::string& param) {
  if (!json.is_string()) bad(param, fmt::format("'{}' must be a string.", param));
  return json.get<std::string>();
}

std::vector<int32_t> ids_of(const Json& json, const std::string& param) {
  std::vector<int32_t> ids;
  ids.reserve(json.size());
  for (const Json& id : json) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
      bad(param, fmt::format("'{}' must be token ids: integers from 0 on.", param));
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

// The content as it is, a string or a list of text parts.
OrderedJson content_of(const Json& content, const std::string& param) {
  if (content.is_string()) return content;
  if (!content.is_array() || content.empty())
    bad(param, fmt::format("'{}' must be a string or an array of parts.", param));
  for (const Json& part : content) {
    if (!part.is_object() || !part.contains("type") || part["type"] != "text" ||
        !part.contains("text"))
      bad(param,
          "Content parts must be {\"type\": \"text\", \"text\": ...}: this model reads text only.");
    text_of(part["text"], param + ".text");
  }
  return content;
}

OrderedJson message_of(const Json& json, const std::string& param, bool tools) {
  if (!json.is_object()) bad(param, fmt::format("'{}' must be an object.", param));
  const Fields fields(json, param);
  std::string role = fields.string("role");
  if (role == "developer") role = "system";
  if (role != "system" && role != "user" && role != "assistant" && !(tools && role == "tool"))
    bad(param + ".role",
        fmt::format("'{}.role' is '{}'; this model knows system, developer, user{} assistant.",
                    param, role, tools ? ", tool and" : " and"));
  OrderedJson message = {{"role", role}};
  if (fields.has("content")) {
    message["content"] = content_of(fields.at("content"), param + ".content");
  } else if (role == "assistant") {
    message["content"] = "";
  } else {
    bad(param + ".content", fmt::format("'{}.content' is missing.", param));
  }
  for (const char* key : {"name", "reasoning_content", "tool_call_id"})
    if (fields.has(key)) message[key] = text_of(fields.at(key), param + "." + key);
  if (fields.has("tool_calls") && !fields.at("tool_calls").empty()) {
    if (!tools) bad(param + ".tool_calls", "This model's chat template knows no tools.");
    message["tool_calls"] = fields.at("tool_calls");
  }
  return message;
}

// What a template is told of tools; it is shown their fields in the client's order.
void read_tools(const Json& json, std::string_view body, const RequestDefaults& defaults,
                OrderedJson& variables) {
  const auto given = [&](const char* key) { return json.contains(key) && !json[key].is_null(); };
  const bool none = given("tool_choice") && json["tool_choice"] == "none";
  if (given("tool_choice") && !none && json["tool_choice"] != "auto")
    bad("tool_choice",
        "'tool_choice' may be \"none\" or \"auto\": this server cannot force a tool call.");
  if (!given("tools") || json["tools"].empty() || none) return;
  if (!json["tools"].is_array()) bad("tools", "'tools' must be an array.");
  if (!defaults.tools)
    bad("tools",
        "This model's chat template knows no tools; leave 'tools' out or set 'tool_choice' to "
        "\"none\".");
  variables["tools"] = OrderedJson::parse(body)["tools"];
}

Conversation conversation_of(const Json& json, std::string_view body,
                             const RequestDefaults& defaults) {
  if (!json.contains("messages") || !json["messages"].is_array() || json["messages"].empty())
    bad("messages", "'messages' must be an array of at least one message.");
  if (json["messages"].size() > kMaxMessages)
    bad("messages", fmt::format("'messages' has {} entries, at most {} are allowed.",
                                json["messages"].size(), kMaxMessages));
  Conversation out{.messages = OrderedJson::array(), .variables = OrderedJson::object()};
  for (const Json& message : json["messages"])
    out.messages.push_back(
        message_of(message, fmt::format("messages[{}]", out.messages.size()), defaults.tools));
  const Fields fields(json, "request");
  if (fields.has("chat_template_kwargs")) {
    out.variables = fields.at("chat_template_kwargs");
    if (!out.variables.is_object())
      bad("chat_template_kwargs", "'chat_template_kwargs' must be an object.");
  }
  read_tools(json, body, defaults, out.variables);
  return out;
}

std::vector<std::string> stops_of(const Json& json) {
  std::vector<std::string> stops;
  if (!json.contains("stop") || json["stop"].is_null()) return stops;
  const Json& stop = json["stop"];
  if (stop.is_string()) {
    stops.push_back(stop.get<std::string>());
  } else if (stop.is_array()) {
    for (const Json& s : stop) stops.push_back(text_of(s, "stop"));
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

std::vector<LogitBias> bias_of(const Json& json) {
  std::vector<LogitBias> bias;
  if (!json.contains("logit_bias") || json["logit_bias"].is_null()) return bias;
  const Json& given = json["logit_bias"];
  if (!given.is_object() || given.size() > kMaxLogitBias)
    bad("logit_bias",
        fmt::format("'logit_bias' must be an object of at most {} token ids.", kMaxLogitBias));
  for (const auto& [key, value] : given.items()) {
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

// What would have to be obeyed and cannot be.
void refuse_unsupported(const Json& json, const Fields& fields) {
  const auto given = [&](const char* key) { return json.contains(key) && !json[key].is_null(); };
  if (given("response_format") &&
      (!json["response_format"].is_object() || !json["response_format"].contains("type") ||
       json["response_format"]["type"] != "text"))
    bad("response_format", "'response_format' may be {\"type\": \"text\"} only.");
  fields.integer("best_of", 1, 1, 1);
  for (const char* key :
       {"suffix", "chat_template", "grammar", "json_schema", "structured_outputs", "guided_json",
        "guided_regex", "guided_choice", "guided_grammar", "prompt_logprobs"})
    if (given(key)) bad(key, fmt::format("'{}' is not supported.", key));
  if (fields.boolean("continue_final_message", false))
    bad("continue_final_message", "'continue_final_message' is not supported.");
}

void read_policy(const Fields& fields, Request& request) {
  const auto choice = [&](const char* key, const char* a, const char* b) -> int {
    if (!fields.has(key)) return -1;
    const std::string value = fields.string(key);
    if (value != a && value != b)
      bad(key, fmt::format("'{}' is '{}', expected '{}' or '{}'.", key, value, a, b));
    return value == b;
  };
  const PrefillPolicy sparse_default;
  const int dense = choice("prefill", "entropy", "dense");
  if (dense == 1) request.prefill.threshold_len = PrefillPolicy::dense().threshold_len;
  if (dense == 0 && request.prefill.is_dense())
    request.prefill.threshold_len = sparse_default.threshold_len;
  const int full = choice("decode", "latent", "full");
  if (full == 1) request.decode.budget = DecodePolicy::full().budget;
  if (full == 0 && request.decode.is_full()) request.decode.budget = DecodePolicy().budget;
  if (fields.has("base_budget"))
    request.prefill.budget.base = static_cast<float>(fields.integer("base_budget", 1, kMaxTokens));
  if (fields.has("budget")) request.decode.budget = fields.integer("budget", 1, kMaxTokens);
  validate(request.prefill);
  validate(request.decode);
}

void read_sampling(const Fields& fields, const RequestDefaults& defaults, Request& request) {
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

// The fields that chats and completions share.
ApiRequest read_common(const Json& json, const Fields& fields, const RequestDefaults& defaults) {
  ApiRequest out;
  refuse_unsupported(json, fields);
  out.request.prefill = defaults.prefill;
  out.request.decode = defaults.decode;
  read_policy(fields, out.request);
  read_sampling(fields, defaults, out.request);
  out.request.stop = stops_of(json);
  out.request.ignore_eos = fields.boolean("ignore_eos", false);
  out.options.logit_bias = bias_of(json);
  out.options.min_tokens = fields.integer("min_tokens", 0, kMaxTokens, 0);
  if (fields.has("stop_token_ids")) {
    if (!json["stop_token_ids"].is_array() || json["stop_token_ids"].size() > kMaxStops * 8)
      bad("stop_token_ids", "'stop_token_ids' must be an array of at most 128 token ids.");
    out.options.stop_tokens = ids_of(json["stop_token_ids"], "stop_token_ids");
  }
  out.n = fields.integer("n", 1, defaults.max_choices, 1);
  out.stream = fields.boolean("stream", false);
  out.return_progress = fields.boolean("return_progress", false);
  out.timeout_ms = fields.integer("timeout_ms", 0, kMaxTokens, 0);
  if (fields.has("stream_options")) {
    if (!json["stream_options"].is_object())
      bad("stream_options", "'stream_options' must be an object.");
    out.include_usage =
        Fields(json["stream_options"], "stream_options").boolean("include_usage", false);
  }
  return out;
}

}  // namespace

ApiRequest parse_chat_request(std::string_view body, const RequestDefaults& defaults) {
  return checked([&] {
    const Json json = parse(body, defaults);
    const Fields fields(json, "request");
    ApiRequest out = read_common(json, fields, defaults);
    out.chat = true;
    out.conversation = conversation_of(json, body, defaults);
    const char* limit =
        fields.has("max_completion_tokens") ? "max_completion_tokens" : "max_tokens";
    out.request.max_tokens = fields.integer(limit, 1, kMaxTokens, defaults.chat_max_tokens);
    const int64_t top = fields.integer("top_logprobs", 0, 20, 0);
    if (fields.boolean("logprobs", false)) {
      out.options.top_logprobs = top;
    } else if (top > 0) {
      bad("top_logprobs", "'top_logprobs' needs 'logprobs' to be true.");
    }
    return out;
  });
}

ApiRequest parse_completion_request(std::string_view body, const RequestDefaults& defaults) {
  return checked([&] {
    const Json json = parse(body, defaults);
    const Fields fields(json, "request");
    ApiRequest out = read_common(json, fields, defaults);
    out.request.max_tokens = fields.integer("max_tokens", 0, kMaxTokens, 16);
    out.echo = fields.boolean("echo", false);
    if (fields.has("logprobs")) {
      // An integer in the legacy API; some clients send a boolean.
      out.options.top_logprobs = json["logprobs"].is_boolean()
                                     ? (json["logprobs"].get<bool>() ? 0 : -1)
                                     : fields.integer("logprobs", 0, 20);
    }
    out.options.score_prompt = out.echo && out.options.top_logprobs >= 0;
    if (out.request.max_tokens == 0 && !out.echo)
      bad("max_tokens", "'max_tokens' is 0, which is of use with 'echo' only.");

    if (!json.contains("prompt")) bad("prompt", "'prompt' is missing.");
    const Json& prompt = json["prompt"];
    if (prompt.is_string()) {
      out.prompts.push_back(prompt.get<std::string>());
    } else if (prompt.is_array() && !prompt.empty() && prompt[0].is_number()) {
      out.prompts.push_back(ids_of(prompt, "prompt"));
    } else if (prompt.is_array() && !prompt.empty()) {
      for (const Json& p : prompt) {
        if (p.is_array()) {
          out.prompts.push_back(ids_of(p, "prompt"));
        } else {
          out.prompts.push_back(text_of(p, "prompt"));
        }
      }
    } else {
      bad("prompt", "'prompt' must be a string, an array of token ids, or an array of either.");
    }
    if (static_cast<int64_t>(out.prompts.size()) > defaults.max_choices / out.n)
      bad("prompt", fmt::format("{} prompts times n = {} are more than {}.", out.prompts.size(),
                                out.n, defaults.max_choices));
    return out;
  });
}

Conversation parse_conversation_request(std::string_view body, const RequestDefaults& defaults) {
  return checked([&] { return conversation_of(parse(body, defaults), body, defaults); });
}

std::variant<std::string, Conversation> parse_text_request(std::string_view body,
                                                           const RequestDefaults& defaults) {
  return checked([&]() -> std::variant<std::string, Conversation> {
    const Json json = parse(body, defaults);
    if (json.contains("messages")) return conversation_of(json, body, defaults);
    for (const char* key : {"content", "prompt", "text"})
      if (json.contains(key)) return text_of(json[key], key);
    bad("content", "'content' is missing.");
  });
}

std::vector<int32_t> parse_tokens_request(std::string_view body, const RequestDefaults& defaults) {
  return checked([&] {
    const Json json = parse(body, defaults);
    if (!json.contains("tokens") || !json["tokens"].is_array())
      bad("tokens", "'tokens' must be an array of token ids.");
    return ids_of(json["tokens"], "tokens");
  });
}

}  // namespace ei::server
