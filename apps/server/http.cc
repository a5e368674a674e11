#include "apps/server/http.h"

#include <atomic>
#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>  // before Boost.Asio 1.74, which needs std::exchange

#include "ei/base/fail.h"

namespace ei::server {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using boost::system::error_code;

// What is sent but not yet taken by a client that reads slowly.
constexpr size_t kMaxQueuedBytes = 16 << 20;

std::string to_string(beast::string_view view) { return {view.data(), view.size()}; }

std::string new_request_id() {
  static std::atomic<uint64_t> next{
      static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch().count())};
  return fmt::format("req-{:x}", next.fetch_add(1));
}

}  // namespace

class Connection;

struct HttpServer::Impl : std::enable_shared_from_this<HttpServer::Impl> {
  Impl(const HttpOptions& o, Handler h, OnRefusal r)
      : options(o), handler(std::move(h)), on_refusal(std::move(r)) {}

  void accept();
  void remove(Connection* connection) {
    const std::lock_guard lock(mutex);
    connections.erase(connection);
    refused.erase(connection);
    removed.notify_all();
  }
  // Those that are not being destroyed. Whoever holds the mutex must not drop them: the last one to
  // do so takes it, in remove().
  std::vector<std::shared_ptr<Connection>> alive() const;

  const HttpOptions options;
  const Handler handler;
  const OnRefusal on_refusal;
  asio::io_context io;
  tcp::acceptor acceptor{io};
  std::atomic<bool> listening{true};
  mutable std::mutex mutex;
  std::set<Connection*> connections;
  std::set<Connection*> refused;  // one too many, that are being told so
  std::condition_variable removed;
  std::vector<std::jthread> threads;
};

// One client. Everything but the methods of Exchange runs on the strand of its socket.
class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, std::shared_ptr<HttpServer::Impl> server)
      : server_(std::move(server)),
        stream_(std::move(socket)),
        ping_timer_(stream_.get_executor()) {}
  ~Connection() { server_->remove(this); }

  void start() {
    asio::dispatch(stream_.get_executor(), [self = shared_from_this()] { self->read(); });
  }
  void refuse_soon(HttpReply reply) {
    asio::dispatch(stream_.get_executor(),
                   [self = shared_from_this(), reply = std::move(reply)]() mutable {
                     self->refuse(std::move(reply));
                   });
  }
  void close_soon() {
    asio::post(stream_.get_executor(), [self = shared_from_this()] { self->close(); });
  }
  void close_if_idle() {
    asio::post(stream_.get_executor(), [self = shared_from_this()] {
      if (self->ended_ && self->queue_.empty()) self->close();
    });
  }

 private:
  class Reply;
  friend class Reply;

  void read();
  void on_header(error_code error);
  void on_body(error_code error);
  void refuse(HttpReply reply);
  void give_up(const std::string& reason);
  void watch();
  void send(std::string bytes, bool last);
  void write_next();
  void finish();
  void close();
  void start_pings();

  const std::shared_ptr<HttpServer::Impl> server_;  // first: the stream needs its io to the end
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  bool first_ = true;

  // The request in hand.
  std::weak_ptr<Reply> exchange_;
  std::optional<std::stop_source> gone_;
  bool keep_ = false;  // the connection, for another request
  bool watching_ = false;
  bool writing_ = false;
  bool ended_ = true;  // everything to be sent is queued
  std::deque<std::string> queue_;
  size_t queued_bytes_ = 0;

  asio::steady_timer ping_timer_;
  std::string ping_;
  std::chrono::milliseconds ping_interval_{0};
  std::chrono::steady_clock::time_point last_write_;
};

class Connection::Reply final : public Exchange {
 public:
  Reply(std::shared_ptr<Connection> connection, HttpRequest request, std::stop_token gone)
      : connection_(std::move(connection)), request_(std::move(request)), gone_(std::move(gone)) {}
  // Whoever drops an exchange without an answer has failed.
  ~Reply() override {
    if (!begun_) {
      reply(error_reply(500, "server_error", "The request was dropped."));
    } else if (!ended_) {
      end();
    }
  }

  const HttpRequest& request() const override { return request_; }
  std::stop_token gone() const override { return gone_; }

  void add_headers(Headers headers) override {
    for (auto& header : headers) headers_.push_back(std::move(header));
  }
  void reply(HttpReply reply) override {
    if (begun_.exchange(true)) return;
    ended_ = true;
    add_own_headers(reply);
    post([reply = std::move(reply)](Connection& c) {
      const bool has_body = c.parser_->get().method() != http::verb::head;
      c.send(reply_head(reply, false, c.keep_) + (has_body ? reply.body : ""), true);
    });
  }
  void begin(HttpReply head) override {
    if (begun_.exchange(true)) return;
    add_own_headers(head);
    post([head = std::move(head)](Connection& c) {
      c.send(reply_head(head, true, c.keep_), false);
    });
  }
  void write(std::string piece) override {
    if (piece.empty()) return;
    std::string bytes = fmt::format("{:x}\r\n", piece.size()) + piece + "\r\n";
    post([bytes = std::move(bytes)](Connection& c) mutable { c.send(std::move(bytes), false); });
  }
  void end() override {
    if (ended_.exchange(true)) return;
    post([](Connection& c) { c.send("0\r\n\r\n", true); });
  }
  void keep_alive(std::string piece, std::chrono::milliseconds interval) override {
    std::string bytes = fmt::format("{:x}\r\n", piece.size()) + piece + "\r\n";
    post([bytes = std::move(bytes), interval](Connection& c) mutable {
      c.ping_ = std::move(bytes);
      c.ping_interval_ = interval;
      c.start_pings();
    });
  }

 private:
  void add_own_headers(HttpReply& reply) {
    reply.headers.emplace_back("X-Request-Id", request_.id);
    for (auto& header : headers_) reply.headers.push_back(std::move(header));
  }
  template <class F>
  void post(F f) {
    asio::post(connection_->stream_.get_executor(),
               [c = connection_, f = std::move(f)]() mutable { f(*c); });
  }

  const std::shared_ptr<Connection> connection_;
  const HttpRequest request_;
  const std::stop_token gone_;
  Headers headers_;
  std::atomic<bool> begun_ = false, ended_ = false;
};

void Connection::read() {
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(server_->options.max_header_bytes));
  parser_->body_limit(server_->options.max_body_bytes);
  // A new connection has to ask something soon; one that was kept may be idle for a while.
  stream_.expires_after(first_ ? server_->options.header_timeout : server_->options.idle_timeout);
  first_ = false;
  http::async_read_header(
      stream_, buffer_, *parser_,
      [self = shared_from_this()](error_code e, size_t) { self->on_header(e); });
}

void Connection::on_header(error_code error) {
  if (error == asio::error::connection_reset && parser_->got_some())
    return give_up("incomplete_request");
  if (error == http::error::end_of_stream || error == asio::error::eof ||
      error == asio::error::connection_reset || error == asio::error::operation_aborted)
    return close();
  if (error == beast::error::timeout) {
    // A connection that was opened, or kept, and not used is none.
    if (parser_->got_some()) return give_up("header_timeout");
    return close();
  }
  if (error == http::error::partial_message) return give_up("incomplete_request");
  if (error == http::error::header_limit)
    return refuse(error_reply(431, "invalid_request_error",
                              fmt::format("The request's header is longer than {} bytes.",
                                          server_->options.max_header_bytes),
                              "", "header_too_long"));
  if (error == http::error::body_limit) return on_body(error);
  if (error)
    return refuse(error_reply(400, "invalid_request_error",
                              fmt::format("This is not an HTTP request: {}.", error.message()), "",
                              "malformed_request"));
  if (beast::iequals(parser_->get()[http::field::expect], "100-continue")) {
    static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    error_code ignored;
    stream_.socket().send(asio::buffer(kContinue), 0, ignored);
  }
  stream_.expires_after(server_->options.idle_timeout);
  http::async_read(stream_, buffer_, *parser_,
                   [self = shared_from_this()](error_code e, size_t) { self->on_body(e); });
}

void Connection::on_body(error_code error) {
  if (error == http::error::body_limit)
    return refuse(error_reply(
        413, "invalid_request_error",
        fmt::format("The request's body is longer than {} bytes.", server_->options.max_body_bytes),
        "", "body_too_long"));
  if (error == beast::error::timeout) return give_up("body_timeout");
  if (error == http::error::partial_message || error == asio::error::eof ||
      error == asio::error::connection_reset)
    return give_up("incomplete_request");
  if (error == asio::error::operation_aborted) return close();
  if (error)
    return refuse(error_reply(400, "invalid_request_error",
                              fmt::format("The request's body is malformed: {}.", error.message()),
                              "", "malformed_request"));
  stream_.expires_never();

  auto& message = parser_->get();
  HttpRequest request;
  request.id = new_request_id();
  request.method = to_string(message.method_string());
  request.path = to_string(message.target());
  request.path = request.path.substr(0, request.path.find('?'));
  request.host = to_string(message[http::field::host]);
  request.origin = to_string(message[http::field::origin]);
  request.authorization = to_string(message[http::field::authorization]);
  request.content_type = to_string(message[http::field::content_type]);
  request.body = std::move(message.body());
  keep_ = message.keep_alive() && server_->listening;
  ended_ = false;
  gone_.emplace();
  auto exchange =
      std::make_shared<Reply>(shared_from_this(), std::move(request), gone_->get_token());
  exchange_ = exchange;
  watch();
  server_->handler(std::move(exchange));
}

// An answer to something that is no whole request; the rest of it is not read.
void Connection::refuse(HttpReply reply) {
  const std::string id = new_request_id();
  server_->on_refusal({.id = id, .status = reply.status, .reason = reply.reason});
  reply.headers.emplace_back("X-Request-Id", id);
  keep_ = false;
  ended_ = false;
  send(reply_head(reply, false, keep_) + reply.body, true);
}

// The same where nobody is there to read an answer.
void Connection::give_up(const std::string& reason) {
  server_->on_refusal({.id = new_request_id(), .reason = reason});
  close();
}

// A client that hangs up while it waits makes its socket readable, with nothing to be read. One
// that sends its next request early is left alone.
void Connection::watch() {
  if (watching_ || buffer_.size() > 0) return;
  watching_ = true;
  stream_.socket().async_wait(
      tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
        self->watching_ = false;
        if (error || self->ended_) return;
        char byte = 0;
        error_code peek;
        self->stream_.socket().non_blocking(true, peek);
        const size_t n =
            self->stream_.socket().receive(asio::buffer(&byte, 1), tcp::socket::message_peek, peek);
        if (peek == asio::error::would_block) return self->watch();
        if (peek || n == 0) self->close();
      });
}

void Connection::send(std::string bytes, bool last) {
  if (ended_ || !stream_.socket().is_open()) return;
  ended_ = last;
  queued_bytes_ += bytes.size();
  queue_.push_back(std::move(bytes));
  if (queued_bytes_ > kMaxQueuedBytes && queue_.size() > 1) return close();
  if (!writing_) write_next();
}

void Connection::write_next() {
  writing_ = true;
  stream_.expires_after(server_->options.write_timeout);
  asio::async_write(stream_, asio::buffer(queue_.front()),
                    [self = shared_from_this()](error_code error, size_t) {
                      self->writing_ = false;
                      if (error || self->queue_.empty()) return self->close();
                      self->last_write_ = std::chrono::steady_clock::now();
                      self->queued_bytes_ -= self->queue_.front().size();
                      self->queue_.pop_front();
                      if (!self->queue_.empty()) return self->write_next();
                      self->stream_.expires_never();
                      if (self->ended_) self->finish();
                    });
}

void Connection::finish() {
  ping_timer_.cancel();
  ping_.clear();
  if (keep_ && server_->listening) {
    // The wait for a hang-up is over: what comes now is the next request.
    error_code ignored;
    if (watching_) stream_.socket().cancel(ignored);
    return asio::post(stream_.get_executor(), [self = shared_from_this()] { self->read(); });
  }
  // Let the client read the answer before the connection is torn down: no data may be left unread.
  error_code ignored;
  stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
  stream_.expires_after(std::chrono::seconds(2));
  buffer_.clear();
  auto drain = std::make_shared<std::function<void(size_t)>>();
  *drain = [self = shared_from_this(), weak = std::weak_ptr(drain)](size_t n_read) {
    constexpr size_t kMostDrained = 1 << 20;
    const auto again = weak.lock();
    if (n_read > kMostDrained || !again) return self->close();
    self->stream_.async_read_some(self->buffer_.prepare(65536),
                                  [self, again, n_read](error_code error, size_t n) {
                                    if (error) return self->close();
                                    (*again)(n_read + n);
                                  });
  };
  (*drain)(0);
}

void Connection::close() {
  ended_ = true;
  keep_ = false;
  ping_timer_.cancel();
  if (gone_) gone_->request_stop();
  error_code ignored;
  stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
  stream_.socket().close(ignored);
}

void Connection::start_pings() {
  if (ended_ || ping_.empty()) return;
  ping_timer_.expires_after(ping_interval_);
  ping_timer_.async_wait([self = shared_from_this()](error_code error) {
    if (error || self->ended_) return;
    if (!self->writing_ &&
        std::chrono::steady_clock::now() - self->last_write_ >= self->ping_interval_)
      self->send(self->ping_, false);
    self->start_pings();
  });
}

std::vector<std::shared_ptr<Connection>> HttpServer::Impl::alive() const {
  std::vector<std::shared_ptr<Connection>> alive;
  const std::lock_guard lock(mutex);
  for (const auto* set : {&connections, &refused})
    for (Connection* connection : *set)
      if (auto held = connection->weak_from_this().lock()) alive.push_back(std::move(held));
  return alive;
}

void HttpServer::Impl::accept() {
  acceptor.async_accept(
      asio::make_strand(io), [self = shared_from_this()](error_code error, tcp::socket socket) {
        if (!self->listening) return;
        if (!error) {
          error_code ignored;
          socket.set_option(tcp::no_delay(true), ignored);
          auto connection = std::make_shared<Connection>(std::move(socket), self);
          constexpr size_t kMostRefused = 32;  // at a time; beyond that nobody is told why
          bool is_full = false, is_told = true;
          {
            const std::lock_guard lock(self->mutex);
            is_full = static_cast<int>(self->connections.size()) >= self->options.max_connections;
            is_told = self->refused.size() < kMostRefused;
            if (!is_full) self->connections.insert(connection.get());
            if (is_full && is_told) self->refused.insert(connection.get());
          }
          if (is_full && !is_told) return self->accept();
          if (is_full) {
            HttpReply reply =
                error_reply(503, "unavailable_error",
                            fmt::format("There are {} connections already, the most there may be.",
                                        self->options.max_connections),
                            "", "too_many_connections");
            reply.headers.emplace_back("Retry-After", "1");
            connection->refuse_soon(std::move(reply));
          } else {
            connection->start();
          }
          return self->accept();
        }
        // Out of descriptors: closing connections will free some.
        auto timer = std::make_shared<asio::steady_timer>(self->io, std::chrono::milliseconds(100));
        timer->async_wait([self, timer](error_code) { self->accept(); });
      });
}

HttpServer::HttpServer(const HttpOptions& options, Handler handler, OnRefusal on_refusal)
    : impl_(std::make_shared<Impl>(options, std::move(handler), std::move(on_refusal))) {
  error_code error;
  const auto address = asio::ip::make_address(options.address, error);
  require(!error, "--host {}: not an IP address; 127.0.0.1 is this machine, 0.0.0.0 all networks",
          options.address);
  const tcp::endpoint endpoint(address, options.port);
  tcp::acceptor& acceptor = impl_->acceptor;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  require(!error, "cannot listen on {} port {}: {}; choose another with --port", options.address,
          options.port, error.message());
  impl_->accept();
  for (int i = 0; i < options.n_threads; ++i)
    impl_->threads.emplace_back([impl = impl_.get()] { impl->io.run(); });
}

HttpServer::~HttpServer() {
  stop_listening();
  for (const auto& connection : impl_->alive()) connection->close_soon();
  // Handlers that hold connections end with them; then the threads have nothing left to run.
  for (auto& thread : impl_->threads) thread.join();
}

void HttpServer::flush(std::chrono::milliseconds timeout) {
  for (const auto& connection : impl_->alive()) connection->close_if_idle();
  std::unique_lock lock(impl_->mutex);
  impl_->removed.wait_for(lock, timeout, [&] { return impl_->connections.empty(); });
}

uint16_t HttpServer::port() const { return impl_->acceptor.local_endpoint().port(); }

int HttpServer::n_connections() const {
  const std::lock_guard lock(impl_->mutex);
  return static_cast<int>(impl_->connections.size());
}

void HttpServer::stop_listening() {
  if (!impl_->listening.exchange(false)) return;
  asio::post(impl_->io, [impl = impl_] {
    error_code ignored;
    impl->acceptor.close(ignored);
  });
}

}  // namespace ei::server
