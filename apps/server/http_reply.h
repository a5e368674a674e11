#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ei::server {

using Headers = std::vector<std::pair<std::string, std::string>>;

struct HttpReply {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  Headers headers;
  std::string reason;  // of an error, for logs and metrics: its code, or its type if it has none
};

// An error in OpenAI's form. `numbers`: further fields of it.
HttpReply error_reply(int status, const std::string& type, const std::string& message,
                      const std::string& param = {}, const std::string& code = {},
                      const std::vector<std::pair<std::string, int64_t>>& numbers = {});

// How a client knows where a body ends.
enum class BodyEnd { kLength, kChunks, kClose };

// Status line and headers of a reply, up to its body. Whatever it says, it begins with kReplyBegin.
// `keep`: the connection is, for another request.
inline constexpr std::string_view kReplyBegin = "HTTP/1.1 ";
std::string reply_head(const HttpReply& reply, BodyEnd end, bool keep);

}  // namespace ei::server
