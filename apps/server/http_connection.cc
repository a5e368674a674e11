#include "apps/server/http_connection.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <array>

namespace ei::server {
namespace {

namespace asio = boost::asio;

constexpr size_t kReadBytes = 64 << 10;      // at a time, before others get their turn
constexpr size_t kMostAhead = 64 << 10;      // of requests sent before the one in hand is answered
constexpr size_t kWritesTogether = 16;       // pieces given to the kernel at a time
constexpr int64_t kRoom = 256 << 10;         // to be sent, beyond which no more should be written
constexpr uint64_t kTimedBytes = 64 << 10;   // of a body in one idle_timeout, at least
constexpr std::chrono::seconds kLingers{5};  // after the last answer: what comes is dropped

std::string new_request_id() {
  static std::atomic<uint64_t> next{
      static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch().count())};
  return fmt::format("req-{:x}", next.fetch_add(1));
}

struct HeldBody {
  ~HeldBody() { server->body_bytes -= n_bytes; }
  std::string bytes;
  std::shared_ptr<HttpServer::Impl> server;
  uint64_t n_bytes = 0;
};

HttpReply unavailable(const std::string& what, const std::string& code) {
  HttpReply reply = error_reply(503, "unavailable_error", what, "", code);
  reply.headers.emplace_back("Retry-After", "1");
  return reply;
}

}  // namespace

class Connection::Reply final : public Exchange {
 public:
  Reply(std::shared_ptr<Connection> connection, HttpRequest request, std::stop_token gone)
      : connection_(std::move(connection)), request_(std::move(request)), gone_(std::move(gone)) {}
  // Whoever drops an exchange without an answer has failed.
  ~Reply() override {
    try {
      if (!begun_) {
        reply(error_reply(500, "server_error", "The request was dropped."));
      } else if (!ended_) {
        end();
      }
    } catch (...) {  // no memory for that either: the connection sees its socket end
      ::shutdown(connection_->socket_.native_handle(), SHUT_RDWR);
    }
  }

  bool begun() const { return begun_; }
  void set_body(std::shared_ptr<const std::string> body) { body_ = std::move(body); }

  const HttpRequest& request() const override { return request_; }
  std::shared_ptr<const std::string> take_body() override { return std::move(body_); }
  std::stop_token gone() const override { return gone_; }

  void add_headers(Headers headers) override {
    for (auto& header : headers) headers_.push_back(std::move(header));
  }
  void reply(HttpReply reply) override {
    if (begun_.exchange(true)) return;
    ended_ = true;
    add_own_headers(reply);
    const bool has_body = request_.method != "HEAD";
    connection_->post([reply = std::move(reply), has_body](Connection& c) mutable {
      std::string head = reply_head(reply, BodyEnd::kLength, c.keep_);
      if (!has_body) return c.send(std::move(head), true);
      if (reply.body.size() <= kReadBytes) return c.send(head + reply.body, true);
      c.send(std::move(head), false);
      c.send(std::move(reply.body), true);
    });
  }
  void begin(HttpReply head) override {
    if (begun_.exchange(true)) return;
    add_own_headers(head);
    std::string piece = head.body.empty() ? "" : in_body(std::move(head.body));
    connection_->post(
        [head = std::move(head), piece = std::move(piece), end = end_of_body()](Connection& c) {
          if (end == BodyEnd::kClose) c.keep_ = false;
          c.hold(reply_head(head, end, c.keep_) + piece);
        });
  }
  void write(std::string piece) override {
    if (!piece.empty()) send(in_body(std::move(piece)), false);
  }
  void end() override {
    if (!ended_.exchange(true)) send(end_of_body() == BodyEnd::kChunks ? "0\r\n\r\n" : "", true);
  }
  void keep_alive(std::string piece, std::chrono::milliseconds interval) override {
    connection_->post([piece = in_body(std::move(piece)), interval](Connection& c) mutable {
      c.ping_ = std::move(piece);
      c.ping_interval_ = interval;
      if (c.input_ended_) c.probe();
      c.start_pings();
    });
  }

  bool has_room() const override {
    return connection_->backlog_ < kRoom || connection_->is_closed_;
  }
  void on_room(std::function<void()> call) override {
    connection_->post([call = std::move(call)](Connection& c) mutable {
      if (c.state_ == State::kAnswering) c.on_room_ = std::move(call);
    });
  }

 private:
  void add_own_headers(HttpReply& reply) {
    reply.headers.emplace_back("X-Request-Id", request_.id);
    for (auto& header : headers_) reply.headers.push_back(std::move(header));
  }
  // HTTP/1.0 knows no chunks.
  BodyEnd end_of_body() const { return request_.is_http_1_0 ? BodyEnd::kClose : BodyEnd::kChunks; }
  std::string in_body(std::string piece) const {
    if (end_of_body() == BodyEnd::kClose) return piece;
    return fmt::format("{:x}\r\n", piece.size()).append(piece).append("\r\n");
  }
  void send(std::string bytes, bool last) {
    connection_->backlog_ += static_cast<int64_t>(bytes.size());
    connection_->post([bytes = std::move(bytes), last](Connection& c) mutable {
      c.backlog_ -= static_cast<int64_t>(bytes.size());
      c.send(std::move(bytes), last);
    });
  }

  const std::shared_ptr<Connection> connection_;
  const HttpRequest request_;
  const std::stop_token gone_;
  std::shared_ptr<const std::string> body_;
  Headers headers_;
  std::atomic<bool> begun_ = false, ended_ = false;
};

Connection::Connection(tcp::socket socket, std::shared_ptr<HttpServer::Impl> server)
    : server_(std::move(server)),
      socket_(std::move(socket)),
      read_timer_(socket_.get_executor()),
      write_timer_(socket_.get_executor()),
      ping_timer_(socket_.get_executor()),
      reader_(server_->options.limits) {
  error_code ignored;
  socket_.non_blocking(true, ignored);
  socket_.set_option(tcp::no_delay(true), ignored);
  socket_.set_option(asio::socket_base::keep_alive(true), ignored);
}

Connection::~Connection() {
  server_->body_bytes -= held_bytes_;
  server_->remove(this);
}

void Connection::start() {
  post([](Connection& c) {
    c.read_deadline(c.server_->options.header_timeout);  // a new connection has to ask soon
    c.on_readable();                                     // most have asked already
  });
}

void Connection::refuse_soon(HttpReply reply) {
  post([reply = std::move(reply)](Connection& c) mutable { c.refuse(std::move(reply)); });
}

void Connection::close_soon() {
  post([](Connection& c) { c.close(); });
}

void Connection::close_if_idle() {
  post([](Connection& c) {
    if (c.state_ != State::kAnswering) c.close();
  });
}

// Something was thrown: by the handler, or for want of memory here.
void Connection::fail() noexcept {
  try {
    std::string().swap(reader_.body());
    if (state_ == State::kReading)
      return refuse(unavailable("There is not enough memory for this request.", "out_of_memory"));
    server_->handler.on_refusal({.id = "", .status = 0, .reason = "out_of_memory"});
  } catch (...) {
  }
  try {
    close();
  } catch (...) {
  }
}

void Connection::wait_readable() {
  if (waiting_ || input_ended_ || state_ == State::kClosed) return;
  waiting_ = true;
  socket_.async_wait(tcp::socket::wait_read, guarded([](Connection& c, error_code error) {
                       c.waiting_ = false;
                       if (!error) c.on_readable();
                     }));
}

void Connection::on_readable() {
  if (state_ == State::kClosed) return;
  std::array<char, kReadBytes> bytes;
  error_code error;
  const size_t n = socket_.read_some(asio::buffer(bytes), error);
  if (error == asio::error::would_block || error == asio::error::try_again) return wait_readable();
  if (error == asio::error::eof) return on_end_of_input();
  if (error && state_ == State::kReading && reader_.begun()) return give_up("incomplete_request");
  if (error) return close();
  take({bytes.data(), n});
  wait_readable();
}

// The client sends no more. Whether it still reads is not known: it may have hung up.
void Connection::on_end_of_input() {
  input_ended_ = true;
  if (state_ == State::kAnswering) return probe();
  if (state_ == State::kReading && reader_.begun()) return give_up("incomplete_request");
  close();
}

// Sends a byte or so of the answer before there is more of it: if nobody is there any more, the
// client's system says so.
void Connection::probe() {
  if (ended_ || state_ != State::kAnswering) return;
  if (!has_begun_ && !is_probed_) {
    is_probed_ = true;
    send_raw(std::string(kReplyBegin));
  } else if (has_begun_ && queue_.empty() && !ping_.empty()) {
    send_raw(ping_);
  }
  socket_.async_wait(tcp::socket::wait_error, guarded([](Connection& c, error_code error) {
                       if (!error) c.close();
                     }));
}

void Connection::take(std::string_view bytes) {
  while (state_ == State::kReading) {
    bytes.remove_prefix(reader_.read(bytes));
    if (reader_.state() == HttpReader::State::kRefused) return refuse(std::move(reader_.refusal()));
    if (reader_.state() == HttpReader::State::kBody && !exchange_) {
      on_head();
      continue;
    }
    if (!hold_body()) {
      return refuse(unavailable(
          fmt::format("The requests that are being read take {} bytes already, the most they may.",
                      server_->options.body_memory),
          "body_memory"));
    }
    if (reader_.state() == HttpReader::State::kDone) {
      on_request();
      break;
    }
    if (!std::exchange(is_timed_, is_timed_ || reader_.begun()) && is_timed_)
      read_deadline(server_->options.header_timeout);
    if (bytes.empty()) return;
  }
  if (state_ == State::kAnswering && keep_ && !bytes.empty()) {
    // Whoever sends so much more than was asked for has to ask again.
    if (ahead_.size() + bytes.size() > kMostAhead) keep_ = false;
    ahead_.append(keep_ ? bytes : "");
  }
  if (state_ == State::kLingering &&
      (n_lingered_ += bytes.size()) > server_->options.limits.body_bytes)
    close();
}

void Connection::on_head() {
  const HttpHead& head = reader_.head();
  keep_ = head.keeps_alive && server_->listening;
  has_begun_ = is_probed_ = ended_ = false;
  gone_.emplace();
  exchange_ = std::make_shared<Reply>(shared_from_this(), HttpRequest{head, new_request_id()},
                                      gone_->get_token());
  server_->handler.on_head(*exchange_);
  if (exchange_->begun()) {
    if (reader_.has_body()) keep_ = false;
    state_ = State::kAnswering;
    read_timer_.cancel();
    exchange_.reset();
    return;
  }
  if (head.expects_continue && reader_.has_body()) send_raw("HTTP/1.1 100 Continue\r\n\r\n");
  is_timed_ = true;
  timed_bytes_ = 0;
  read_deadline(server_->options.idle_timeout);
}

// Counts what has come of the body; whether there is room for it.
bool Connection::hold_body() {
  const uint64_t n = reader_.body().size();
  if (n == held_bytes_) return true;
  const uint64_t all = server_->body_bytes += n - held_bytes_;
  held_bytes_ = n;
  if (n - timed_bytes_ >= kTimedBytes) {
    timed_bytes_ = n;
    read_deadline(server_->options.idle_timeout);
  }
  return all <= server_->options.body_memory;
}

void Connection::on_request() {
  read_timer_.cancel();
  auto body = std::make_shared<HeldBody>();
  body->server = server_;
  body->n_bytes = std::exchange(held_bytes_, 0);
  body->bytes = std::move(reader_.body());
  exchange_->set_body({body, &body->bytes});
  state_ = State::kAnswering;
  server_->handler.on_request(std::move(exchange_));
}

// An answer to something that is no whole request; the rest of it is not read.
void Connection::refuse(HttpReply reply) {
  if (!exchange_) {
    gone_.emplace();
    has_begun_ = is_probed_ = ended_ = false;
    exchange_ = std::make_shared<Reply>(
        shared_from_this(), HttpRequest{reader_.head(), new_request_id()}, gone_->get_token());
  }
  read_timer_.cancel();
  keep_ = false;
  state_ = State::kAnswering;
  server_->body_bytes -= std::exchange(held_bytes_, 0);
  reader_.next();
  const auto exchange = std::move(exchange_);
  server_->handler.on_refusal(
      {.id = exchange->request().id, .status = reply.status, .reason = reply.reason});
  exchange->reply(server_->handler.in_form_of(exchange->request().path, std::move(reply)));
}

// The same where nobody is there to read an answer.
void Connection::give_up(const std::string& reason) {
  server_->handler.on_refusal(
      {.id = exchange_ ? exchange_->request().id : new_request_id(), .reason = reason});
  close();
}

void Connection::read_deadline(std::chrono::milliseconds timeout) {
  read_timer_.expires_after(timeout);
  read_timer_.async_wait(guarded([](Connection& c, error_code error) {
    // One that was set anew may have been about to be called.
    if (!error && c.read_timer_.expiry() <= std::chrono::steady_clock::now()) c.on_read_deadline();
  }));
}

void Connection::on_read_deadline() {
  if (state_ == State::kAnswering) return;
  if (state_ == State::kReading && reader_.state() == HttpReader::State::kBody)
    return give_up("body_timeout");
  // A connection that was opened, or kept, and not used is none.
  if (state_ == State::kReading && reader_.begun()) return give_up("header_timeout");
  close();
}

void Connection::hold(std::string begin) {
  if (!ended_ && state_ == State::kAnswering) begin_ = std::move(begin);
}

void Connection::send(std::string bytes, bool last) {
  if (ended_ || state_ != State::kAnswering) return;
  if (!begin_.empty()) bytes = std::exchange(begin_, {}) + bytes;
  if (!std::exchange(has_begun_, true) && is_probed_) bytes.erase(0, kReplyBegin.size());
  ended_ = last;
  send_raw(std::move(bytes));
}

void Connection::send_raw(std::string bytes) {
  backlog_ += static_cast<int64_t>(bytes.size());
  if (!bytes.empty()) queue_.push_back(std::move(bytes));
  if (writing_) return;
  if (!queue_.empty()) return write_next();
  if (ended_) finish();
}

void Connection::write_next() {
  writing_ = true;
  std::array<asio::const_buffer, kWritesTogether> pieces;
  const size_t n = std::min(queue_.size(), pieces.size());
  for (size_t i = 0; i < n; ++i) pieces[i] = asio::buffer(queue_[i]);
  pieces[0] += n_written_;
  write_timer_.expires_after(server_->options.write_timeout);
  write_timer_.async_wait(guarded([](Connection& c, error_code error) {
    if (!error && c.write_timer_.expiry() <= std::chrono::steady_clock::now()) c.close();
  }));
  socket_.async_write_some(pieces, guarded([](Connection& c, error_code error, size_t written) {
                             c.writing_ = false;
                             if (error) return c.close();
                             c.on_written(written);
                           }));
}

void Connection::on_written(size_t n) {
  if (state_ == State::kClosed) return;
  backlog_ -= static_cast<int64_t>(n);
  for (n_written_ += n; !queue_.empty() && n_written_ >= queue_[0].size(); queue_.pop_front())
    n_written_ -= queue_[0].size();
  if (!queue_.empty()) return write_next();
  write_timer_.cancel();
  last_write_ = std::chrono::steady_clock::now();
  if (state_ != State::kAnswering) return;
  if (ended_) return finish();
  if (on_room_) on_room_();
}

void Connection::start_pings() {
  if (ended_ || ping_.empty() || state_ != State::kAnswering) return;
  ping_timer_.expires_after(ping_interval_);
  ping_timer_.async_wait(guarded([](Connection& c, error_code error) {
    if (error || c.ended_) return;
    if (!c.writing_ && std::chrono::steady_clock::now() - c.last_write_ >= c.ping_interval_)
      c.send(c.ping_, false);
    c.start_pings();
  }));
}

// All of the answer was taken.
void Connection::finish() {
  ping_timer_.cancel();
  ping_.clear();
  on_room_ = {};
  gone_.reset();
  if (keep_ && server_->listening) {
    reader_.next();
    state_ = State::kReading;
    is_timed_ = false;
    read_deadline(server_->options.idle_timeout);
    take(std::exchange(ahead_, {}));
    if (input_ended_ && state_ == State::kReading) return on_end_of_input();
    return wait_readable();
  }
  if (input_ended_) return close();
  // Let the client read the answer before the connection is torn down: no data may be left unread.
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  state_ = State::kLingering;
  read_deadline(kLingers);
  wait_readable();
}

void Connection::close() {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_both, ignored);
  socket_.close(ignored);
  is_closed_ = true;
  for (auto* timer : {&read_timer_, &write_timer_, &ping_timer_}) timer->cancel();
  server_->body_bytes -= std::exchange(held_bytes_, 0);
  reader_.next();
  exchange_.reset();
  if (gone_) gone_->request_stop();
  if (const auto call = std::exchange(on_room_, {})) call();
}

}  // namespace ei::server
