#pragma once

// clang-format off
#include <utility>  // before Boost.Asio 1.74, which needs std::exchange
// clang-format on
#include <atomic>
#include <boost/asio.hpp>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "apps/server/http.h"

namespace ei::server {

class Connection;

// What the connections of a server share.
struct HttpServer::Impl : std::enable_shared_from_this<HttpServer::Impl> {
  using error_code = boost::system::error_code;
  using tcp = boost::asio::ip::tcp;

  Impl(const HttpOptions& o, HttpHandler& h) : options(o), handler(h) {}

  void listen();
  void accept();
  void accept_later();
  void take(tcp::socket socket);
  void run();
  void remove(Connection* connection);
  // Those that are not being destroyed. Whoever holds the mutex must not drop them: the last one to
  // do so takes it, in remove().
  std::vector<std::shared_ptr<Connection>> alive() const;

  const HttpOptions options;
  HttpHandler& handler;
  boost::asio::io_context io;
  tcp::acceptor acceptor{io};
  boost::asio::steady_timer retry_timer{io};
  std::atomic<bool> listening{true};
  std::atomic<uint64_t> body_bytes{0};  // of all bodies that are there
  mutable std::mutex mutex;
  std::set<Connection*> connections;
  std::set<Connection*> refused;  // one too many, that are being told so
  std::condition_variable removed;
  std::vector<std::jthread> threads;
};

// One client. All that is not said to be for any thread runs on the strand of its socket.
class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  using error_code = boost::system::error_code;
  using tcp = boost::asio::ip::tcp;

  Connection(tcp::socket socket, std::shared_ptr<HttpServer::Impl> server);
  ~Connection();

  // Any thread.
  void start();
  void refuse_soon(HttpReply reply);
  void close_soon();
  void close_if_idle();

 private:
  class Reply;
  enum class State {
    kReading,    // a request, or waiting for one
    kAnswering,  // it; what comes meanwhile is kept for later
    kLingering,  // all was answered: the client may read it before the connection is torn down
    kClosed
  };

  // Calls f on the strand; whatever f throws ends this connection alone.
  template <class F>
  void post(F f) {
    boost::asio::post(socket_.get_executor(), guarded(std::move(f)));
  }
  template <class F>
  auto guarded(F f) {
    return [self = shared_from_this(), f = std::move(f)](auto&&... args) mutable {
      try {
        f(*self, args...);
      } catch (...) {
        self->fail();
      }
    };
  }
  void fail() noexcept;

  void wait_readable();
  void on_readable();
  void on_end_of_input();
  void take(std::string_view bytes);
  void on_head();
  bool hold_body();
  void on_request();
  void refuse(HttpReply reply);
  void give_up(const std::string& reason);
  void read_deadline(std::chrono::milliseconds timeout);
  void on_read_deadline();

  void hold(std::string begin);
  void send(std::string bytes, bool last);
  void send_raw(std::string bytes);
  void write_next();
  void on_written(size_t n);
  void start_pings();
  void probe();
  void finish();
  void close();

  const std::shared_ptr<HttpServer::Impl> server_;  // first: the socket needs its io to the end
  tcp::socket socket_;
  boost::asio::steady_timer read_timer_, write_timer_, ping_timer_;
  State state_ = State::kReading;

  HttpReader reader_;
  bool waiting_ = false;      // for the socket to be readable
  bool input_ended_ = false;  // the client sends no more
  bool is_timed_ = true;      // the header's time is running
  std::string ahead_;         // what came while the request before was answered
  uint64_t held_bytes_ = 0;   // of the body, counted in the server's
  uint64_t timed_bytes_ = 0;  // of the body, when its time began
  size_t n_lingered_ = 0;     // bytes

  // The request in hand; the exchange while its body is read.
  std::shared_ptr<Reply> exchange_;
  std::optional<std::stop_source> gone_;
  bool keep_ = false;       // the connection, for another request
  std::string begin_;       // of an answer in pieces, until there is more of it
  bool has_begun_ = false;  // to answer: the head is queued
  bool is_probed_ = false;  // kReplyBegin was sent before there was an answer
  bool ended_ = false;      // everything to be sent is queued
  bool writing_ = false;
  std::deque<std::string> queue_;
  size_t n_written_ = 0;             // of the queue's first
  std::atomic<int64_t> backlog_{0};  // bytes that are to be sent
  std::atomic<bool> is_closed_{false};
  std::function<void()> on_room_;

  std::string ping_;
  std::chrono::milliseconds ping_interval_{0};
  std::chrono::steady_clock::time_point last_write_;
};

}  // namespace ei::server
