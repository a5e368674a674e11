#pragma once

#include <optional>
#include <string>

#include "apps/server/api_error.h"
#include "apps/server/http_reply.h"
#include "ei/engine/scheduler.h"

namespace ei::server {

HttpReply to_reply(const ApiError& error);
// `param`: the field that the prompt came in.
HttpReply to_reply(const Refusal& refusal, const std::string& param);
// Why there is no whole answer, if there is none. `param`: the field that asked for its form.
std::optional<HttpReply> failure_of(const Outcome& outcome, const std::string& param);
HttpReply unavailable(const std::string& what, int retry_after_s);

// An error as Anthropic's API says it.
HttpReply messages_error(HttpReply error);

}  // namespace ei::server
