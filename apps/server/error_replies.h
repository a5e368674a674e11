#pragma once

#include <string>

#include "apps/server/api_error.h"
#include "apps/server/http_reply.h"
#include "ei/engine/scheduler.h"

namespace ei::server {

HttpReply to_reply(const ApiError& error);
// `param`: the field that the prompt came in.
HttpReply to_reply(const Refusal& refusal, const std::string& param);
HttpReply unavailable(const std::string& what, int retry_after_s);

// An error as Anthropic's API says it.
HttpReply messages_error(HttpReply error);

}  // namespace ei::server
