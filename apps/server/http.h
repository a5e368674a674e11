#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "apps/server/http_reply.h"

namespace ei::server {

struct HttpRequest {
  std::string id;      // of this request, in every log line and in X-Request-Id
  std::string method;  // "GET"
  std::string path;    // without the query; not decoded
  std::string body;
  std::string host, origin, authorization, content_type;
};

// What was sent and is no request that a handler could answer.
struct HttpRefusal {
  std::string id;
  int status = 0;  // of the answer; 0: the connection was closed without one
  // malformed_request, header_too_long, body_too_long, header_timeout, body_timeout,
  // incomplete_request (the client hung up within it) or too_many_connections.
  std::string reason;
};

// One request and the way back to its client. All methods may be called from any thread, and after
// the client has gone.
class Exchange {
 public:
  virtual ~Exchange() = default;

  virtual const HttpRequest& request() const = 0;
  // Requested when the client hangs up, or does not take what it is sent.
  virtual std::stop_token gone() const = 0;

  virtual void add_headers(Headers headers) = 0;  // to the answer, before there is one
  virtual void reply(HttpReply reply) = 0;        // all at once; or
  virtual void begin(HttpReply head) = 0;         // in pieces: status and headers first (no body),
  virtual void write(std::string piece) = 0;
  virtual void end() = 0;
  // A piece to send whenever nothing was sent for `interval`, until end().
  virtual void keep_alive(std::string piece, std::chrono::milliseconds interval) = 0;
};

struct HttpOptions {
  std::string address = "127.0.0.1";
  uint16_t port = 8000;  // 0: any that is free
  int n_threads = 2;
  uint64_t max_header_bytes = 32 << 10;
  uint64_t max_body_bytes = 64 << 20;
  int max_connections = 1024;
  std::chrono::seconds header_timeout{10};  // to receive a request's header
  std::chrono::seconds idle_timeout{60};    // to receive its body, or the next request
  std::chrono::seconds write_timeout{60};   // for the client to take what it is sent
};

// HTTP/1.1 with limits on everything a client sends. What a client may not do is answered here, by
// an error in OpenAI's form (400, 413, 431, 503), and what comes too slowly is dropped; the handler
// gets whole requests, on_refusal hears of the rest. Both are called on threads that they may not
// block for long.
class HttpServer {
 public:
  using Handler = std::function<void(std::shared_ptr<Exchange>)>;
  using OnRefusal = std::function<void(const HttpRefusal&)>;

  // Listens at once; throws Error naming address and port when it cannot.
  HttpServer(const HttpOptions& options, Handler handler, OnRefusal on_refusal);
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
