#include "apps/server/answer_json.h"

#include <fmt/format.h>

#include <iterator>

#include "apps/server/log.h"
#include "ei/policy/named.h"

namespace ei::server {

std::string dump(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

Usage usage_of(const Outcome& outcome) {
  const Generation& g = outcome.generation;
  return {g.prompt_tokens, g.cached_tokens, std::ssize(g.tokens)};
}

bool is_object(std::string_view text) { return text.starts_with('{') && OrderedJson::accept(text); }

std::string server_event(std::string_view name, std::string_view json) {
  return fmt::format("event: {}\ndata: {}\n\n", name, json);
}

std::string with(std::string object, std::string_view key, std::string_view value) {
  object.pop_back();
  return object.append(object.size() > 1 ? ",\"" : "\"").append(key).append("\":").append(value) +
         "}";
}

void append_parts(std::vector<AnswerPart>& parts, std::vector<AnswerPart> more) {
  for (AnswerPart& part : more) {
    if (part.kind == AnswerPart::Kind::kArguments) {
      parts.back().call.arguments += part.text;
    } else if (!parts.empty() && part.kind != AnswerPart::Kind::kCall &&
               parts.back().kind == part.kind) {
      parts.back().text += part.text;
    } else {
      parts.push_back(std::move(part));
    }
  }
}

std::string call_id(const std::string& answer, size_t choice, int64_t index) {
  constexpr char kDigits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : fmt::format("{}/{}/{}", answer, choice, index))
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  hash ^= hash >> 32;
  std::string id;
  for (int i = 0; i < 9; ++i, hash /= 36) id += kDigits[hash % 36];
  return id;
}

OrderedJson call_json(const ToolCall& call, const std::string& id) {
  return {{"id", id},
          {"type", "function"},
          {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
}

OrderedJson message_json(std::span<const AnswerPart> parts, const std::string& answer,
                         size_t choice) {
  std::string text, reasoning;
  OrderedJson calls = OrderedJson::array();
  for (const AnswerPart& part : parts) {
    if (part.kind == AnswerPart::Kind::kText) text += part.text;
    if (part.kind == AnswerPart::Kind::kReasoning) reasoning += part.text;
    if (part.kind == AnswerPart::Kind::kCall)
      calls.push_back(call_json(part.call, call_id(answer, choice, std::ssize(calls))));
  }
  OrderedJson message = {{"role", "assistant"}, {"content", nullptr}, {"refusal", nullptr}};
  if (!text.empty() || calls.empty()) message["content"] = text;
  if (!reasoning.empty()) message["reasoning_content"] = reasoning;
  if (!calls.empty()) message["tool_calls"] = std::move(calls);
  return message;
}

void append_deltas(std::vector<OrderedJson>& contents, AnswerPart part, const std::string& answer,
                   size_t choice, int64_t& n_calls) {
  const auto add = [&](const char* key, OrderedJson value) {
    contents.push_back({{"delta", {{key, std::move(value)}}}});
  };
  if (part.kind == AnswerPart::Kind::kText) return add("content", std::move(part.text));
  if (part.kind == AnswerPart::Kind::kReasoning)
    return add("reasoning_content", std::move(part.text));
  if (part.kind == AnswerPart::Kind::kCall) {
    OrderedJson call = {{"index", n_calls}};
    call.update(call_json({part.call.name, ""}, call_id(answer, choice, n_calls)));
    add("tool_calls", OrderedJson::array({std::move(call)}));
    ++n_calls;
    part.text = std::move(part.call.arguments);
  }
  if (part.text.empty()) return;
  OrderedJson more = {{"index", n_calls - 1}, {"function", {{"arguments", std::move(part.text)}}}};
  add("tool_calls", OrderedJson::array({std::move(more)}));
}

const char* reason_name(FinishReason reason) {
  return reason == FinishReason::kLength ? "length" : "stop";
}

void log_outcome(const std::string& id, const Outcome& outcome) {
  const Generation& g = outcome.generation;
  if (outcome.error) {
    log_event("request_failed", {{"id", id}, {"error", *outcome.error}});
    return;
  }
  OrderedJson event = {
      {"id", id},
      {"finish",
       g.finish_reason == FinishReason::kCancelled ? "cancelled" : reason_name(g.finish_reason)},
      {"prompt_tokens", g.prompt_tokens},
      {"cached_tokens", g.cached_tokens},
      {"ram_tokens", g.host_tokens},
      {"loaded_tokens", g.loaded_tokens},
      {"generated_tokens", g.tokens.size()},
      {"queue_ms", int64_t(outcome.queue_ms)},
      {"prefill_ms", int64_t(g.timings.prefill_ms)},
      {"decode_ms", int64_t(g.timings.decode_ms)},
      {"density", g.sparsity.density},
      {"kv_bytes", g.kv.bytes}};
  if (!outcome.lost_prefix.empty()) event["prefix_cache"] = outcome.lost_prefix;
  log_event("request_done", std::move(event));
}

OrderedJson timings_json(const Outcome& outcome) {
  const Generation& g = outcome.generation;
  return {{"queue_ms", outcome.queue_ms},
          {"cache_n", g.cached_tokens},
          {"cache_ram_n", g.host_tokens},
          {"cache_disk_n", g.loaded_tokens},
          {"prompt_n", g.prompt_tokens - g.cached_tokens},
          {"prompt_ms", g.timings.prefill_ms},
          {"prompt_per_second", g.timings.prefill_tps},
          {"predicted_n", g.tokens.size()},
          {"predicted_ms", g.timings.decode_ms},
          {"predicted_per_second", g.timings.decode_tps}};
}

OrderedJson sparsity_json(const Request& request, const Outcome& outcome) {
  const Generation& g = outcome.generation;
  return {{"prefill", name_of(request.prefill)},
          {"decode", name_of(request.decode)},
          {"density", g.sparsity.density},
          {"kept_blocks_mean", g.sparsity.kept_blocks_mean},
          {"rigid_heads", g.sparsity.rigid_heads},
          {"dynamic_heads", g.sparsity.dynamic_heads},
          {"kv_bytes", g.kv.bytes},
          {"kv_bytes_full", g.kv.bytes_full},
          {"compressed", g.kv.compressed}};
}

std::string with_measures(std::string object, const Request& request, const Outcome& outcome) {
  object = with(std::move(object), "timings", dump(timings_json(outcome)));
  return with(std::move(object), "sparsity", dump(sparsity_json(request, outcome)));
}

}  // namespace ei::server
