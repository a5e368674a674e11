#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "apps/server/http_reader.h"
#include "apps/server/http_reply.h"

namespace ei::server {

struct HttpRequest : HttpHead {
  std::string id;  // in every log line and in X-Request-Id
};

// What was sent and is no request that a handler could answer.
struct HttpRefusal {
  std::string id;
  int status = 0;  // of the answer; 0: the connection was closed without one
  // malformed_request, header_too_long, body_too_long, unsupported_encoding, unknown_expectation,
  // body_memory, header_timeout, body_timeout, incomplete_request (the client hung up within it),
  // too_many_connections or out_of_memory.
  std::string reason;
};

// One request and the way back to its client. All methods may be called from any thread, and after
// the client has gone.
class Exchange {
 public:
  virtual ~Exchange() = default;

  virtual const HttpRequest& request() const = 0;
  // The body, once all of it is there. Counts against the memory for bodies until it is dropped.
  virtual std::shared_ptr<const std::string> take_body() = 0;
  // Requested when the client hangs up, or does not take what it is sent.
  virtual std::stop_token gone() const = 0;

  virtual void add_headers(Headers headers) = 0;  // to the answer, before there is one
  virtual void reply(HttpReply reply) = 0;        // all at once; or
  // in pieces: status, headers and, as its body, the first piece. They go out with what comes next:
  // until then whoever stands between may give the request to another server, should this one die.
  virtual void begin(HttpReply head) = 0;
  virtual void write(std::string piece) = 0;
  virtual void end() = 0;
  // A piece to send whenever nothing was sent for `interval`, until end().
  virtual void keep_alive(std::string piece, std::chrono::milliseconds interval) = 0;

  // Whether more should be written now: a client that reads slowly is waited for.
  virtual bool has_room() const = 0;
  // Called each time the client has taken all that was written, or has gone. It may not block.
  virtual void on_room(std::function<void()> call) = 0;
};

// What a server does with what it is sent. All are called on threads that they may not block for
// longer than some milliseconds.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  // The head of a request is there. If it is answered now, its body is not read.
  virtual void on_head(Exchange& exchange) = 0;
  // All of it is.
  virtual void on_request(std::shared_ptr<Exchange> exchange) = 0;
  virtual void on_refusal(const HttpRefusal& refusal) = 0;
  // An error in the form of the API that `path` belongs to; it comes in OpenAI's.
  virtual HttpReply in_form_of(std::string_view path, HttpReply error) const = 0;
};

struct HttpOptions {
  std::string address = "127.0.0.1";  // or a name
  uint16_t port = 8000;               // 0: any that is free
  int n_threads = 2;
  HttpLimits limits;
  uint64_t body_memory = 256 << 20;  // of the bodies that are there at the same time
  int max_connections = 1024;
  std::chrono::seconds header_timeout{10};  // to receive a request's header
  std::chrono::seconds idle_timeout{60};    // for the next request, and for 64 KiB of a body
  std::chrono::seconds write_timeout{60};   // for the client to take something of what it is sent
};

// "::1", 8000 -> "[::1]:8000"
std::string host_and_port(const std::string& address, uint16_t port);

// HTTP/1.1 and 1.0 with limits on everything a client sends. What a client may not do is answered
// here, by an error in the form of the API asked, and what comes too slowly is dropped; the handler
// gets whole requests and hears of the rest. A client that has closed its side for sending still
// gets its answer. No failure, were it for want of memory, ends more than the connection it happens
// on.
class HttpServer {
 public:
  // Listens at once; throws Error naming address and port when it cannot.
  HttpServer(const HttpOptions& options, HttpHandler& handler);
  ~HttpServer();  // closes all connections
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  uint16_t port() const;
  int n_connections() const;
  // Takes no new connections; those that are open may finish the requests they are in.
  void stop_listening();
  // Until all connections that answer something have done so, for `timeout` at most.
  void flush(std::chrono::milliseconds timeout);

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace ei::server
