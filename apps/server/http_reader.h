#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "apps/server/http_reply.h"

namespace ei::server {

// What a request says before its body. Values of headers that are not there are empty.
struct HttpHead {
  std::string method;                  // "GET"
  std::string path;                    // without the query, percent-decoded
  std::string host;                    // in lower case, with the port if it has one
  std::string origin;                  // in lower case
  std::string authorization, api_key;  // X-Api-Key
  std::string content_type;
  std::string requested_headers;  // those that a CORS preflight asks for
  bool is_http_1_0 = false;
  bool keeps_alive = false;       // the client wants the connection for another request
  bool expects_continue = false;  // the client waits to be asked for its body
};

struct HttpLimits {
  size_t head_bytes = 32 << 10;  // request line and headers; trailers by themselves as well
  size_t n_headers = 128;
  size_t chunk_line_bytes = 1 << 10;  // a chunk's size with its extensions
  size_t body_bytes = 64 << 20;
};

// Reads HTTP/1.1 and 1.0 requests (RFC 9112) out of a connection's bytes, however they are cut. Of
// what two readers might take for different requests nothing is guessed: it is refused, and nothing
// more is read. Holds one head and one body and nothing else: chunk extensions and trailers are
// counted and dropped.
class HttpReader {
 public:
  enum class State { kHead, kBody, kDone, kRefused };

  explicit HttpReader(const HttpLimits& limits) : limits_(limits) {}

  // Takes bytes from the front of `bytes` and returns how many. Stops behind a head and behind a
  // request: the caller looks at state() and calls again with the rest.
  size_t read(std::string_view bytes);

  State state() const { return state_; }
  bool begun() const;                             // something of a request has come
  const HttpHead& head() const { return head_; }  // from kBody on
  bool has_body() const;                          // in kBody: more than the head has to come
  std::string& body() { return body_; }           // what has come of it
  // In kRefused: the error to answer, after which the connection has to be closed.
  HttpReply& refusal() { return refusal_; }

  void next();  // from any state to the next request; memory is given back

 private:
  enum class Part { kStartLine, kHeaders, kSized, kChunkSize, kChunkData, kChunkEnd, kTrailers };

  bool line(std::string_view& bytes, size_t most);
  void too_long();
  void on_line();
  void start_line(std::string_view text);
  void target(std::string_view text);
  void header(std::string name, std::string_view value);
  void end_of_head();
  bool frame_body();
  void body_too_long();
  void drop();
  void read_body(std::string_view& bytes);
  void chunk_line();
  void refuse(int status, const std::string& what, const std::string& code = "malformed_request");

  HttpLimits limits_;
  State state_ = State::kHead;
  Part part_ = Part::kStartLine;
  HttpHead head_;
  std::string body_;
  HttpReply refusal_;

  std::string line_;       // what has come of the current one
  size_t head_bytes_ = 0;  // of this head, or of these trailers
  size_t n_headers_ = 0;
  std::map<std::string, std::string, std::less<>> fields_;  // those that matter
  std::string target_host_;
  uint64_t left_ = 0;  // bytes of the body, or of its current chunk
};

}  // namespace ei::server
