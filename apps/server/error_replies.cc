#include "apps/server/error_replies.h"

#include <fmt/format.h>

#include "ei/io/json.h"

namespace ei::server {
namespace {

int64_t mib(int64_t bytes) { return (bytes + (1 << 20) - 1) >> 20; }

const char* error_type(int status) {
  switch (status) {
    case 400:
      return "invalid_request_error";
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      break;
  }
  return status < 500 ? "invalid_request_error" : "api_error";
}

}  // namespace

HttpReply to_reply(const ApiError& error) {
  return error_reply(error.status, error.type, error.what(), error.param, error.code);
}

HttpReply to_reply(const Refusal& refusal, const std::string& param) {
  switch (refusal.kind) {
    case Refusal::Kind::kTooLong:
      return error_reply(
          400, "invalid_request_error",
          fmt::format("This model's maximum context length is {} tokens. However, your prompt "
                      "contains {} tokens and asks for {} of output. Please reduce the length of "
                      "the prompt.",
                      refusal.n_context, refusal.n_prompt, refusal.n_answer),
          param, "context_length_exceeded",
          {{"n_prompt_tokens", refusal.n_prompt}, {"n_ctx", refusal.n_context}});
    case Refusal::Kind::kTooLarge:
      return error_reply(
          400, "invalid_request_error",
          fmt::format(
              "The KV cache of {} prompt tokens and {} of output needs {} MiB; this server "
              "has {} MiB for it. Shorten the prompt, lower max_tokens, or start the server "
              "with a larger --kv-memory.",
              refusal.n_prompt, refusal.n_answer, mib(refusal.bytes), mib(refusal.bytes_max)),
          param, "kv_memory_exceeded");
    case Refusal::Kind::kBusy: {
      HttpReply reply = error_reply(
          429, "rate_limit_error",
          fmt::format("The server is busy: {} requests with {} prompt tokens are waiting, at most "
                      "{} with {} may. Try again in {} s.",
                      refusal.n_waiting, refusal.n_tokens, refusal.n_waiting_max,
                      refusal.n_tokens_max, refusal.retry_after_s),
          "", "server_busy");
      reply.headers.emplace_back("Retry-After", std::to_string(refusal.retry_after_s));
      return reply;
    }
    case Refusal::Kind::kDraining:
      break;
  }
  return error_reply(503, "unavailable_error", "The server is shutting down.");
}

std::optional<HttpReply> failure_of(const Outcome& outcome, const std::string& param) {
  if (outcome.error && outcome.is_asked_for)
    return error_reply(400, "invalid_request_error", *outcome.error, param);
  if (outcome.error) return error_reply(503, "unavailable_error", *outcome.error);
  if (outcome.generation.finish_reason == FinishReason::kCancelled)
    return error_reply(503, "unavailable_error",
                       "The request was cancelled: it timed out or the server shut down.");
  return {};
}

HttpReply unavailable(const std::string& what, int retry_after_s) {
  HttpReply reply = error_reply(503, "unavailable_error", what);
  reply.headers.emplace_back("Retry-After", std::to_string(retry_after_s));
  return reply;
}

HttpReply messages_error(HttpReply error) {
  const OrderedJson body = OrderedJson::parse(error.body);
  error.body =
      OrderedJson(
          {{"type", "error"},
           {"error", {{"type", error_type(error.status)}, {"message", body["error"]["message"]}}}})
          .dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  return error;
}

}  // namespace ei::server
