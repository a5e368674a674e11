#include "apps/server/http_reply.h"

#include <fmt/format.h>

#include <boost/beast/http/status.hpp>

#include "ei/io/json.h"

namespace ei::server {
namespace {

namespace http = boost::beast::http;

const char* reason(int status) {
  switch (status) {
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    default:
      break;
  }
  return nullptr;
}

}  // namespace

HttpReply error_reply(int status, const std::string& type, const std::string& message,
                      const std::string& param, const std::string& code,
                      const std::vector<std::pair<std::string, int64_t>>& numbers) {
  const auto text = [](const std::string& s) {
    return s.empty() ? OrderedJson(nullptr) : OrderedJson(s);
  };
  HttpReply reply;
  reply.status = status;
  reply.reason = code.empty() ? type : code;
  OrderedJson error = {{"message", message},
                       {"type", type},
                       {"param", text(param)},
                       {"code", code.empty() ? OrderedJson(status) : OrderedJson(code)}};
  for (const auto& [name, number] : numbers) error[name] = number;
  reply.body = OrderedJson{{"error", std::move(error)}}.dump(-1, ' ', false,
                                                             OrderedJson::error_handler_t::replace);
  return reply;
}

std::string reply_head(const HttpReply& reply, BodyEnd end, bool keep) {
  const char* text = reason(reply.status);
  std::string head =
      fmt::format("{}{} {}\r\nServer: entropyinfer\r\nX-Content-Type-Options: nosniff\r\n",
                  kReplyBegin, reply.status,
                  text != nullptr ? std::string(text)
                                  : std::string(http::obsolete_reason(
                                        http::int_to_status(static_cast<unsigned>(reply.status)))));
  for (const auto& [name, value] : reply.headers) head += name + ": " + value + "\r\n";
  if (reply.status != 204) head += "Content-Type: " + reply.content_type + "\r\n";
  if (end == BodyEnd::kChunks) head += "Transfer-Encoding: chunked\r\n";
  if (end == BodyEnd::kLength && reply.status != 204)
    head += fmt::format("Content-Length: {}\r\n", reply.body.size());
  return head + (keep ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n");
}

}  // namespace ei::server
