#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <future>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "apps/server/http.h"

namespace ei::server {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

class Client {
 public:
  explicit Client(const HttpServer& server) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(server.port());
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int small = 64 << 10;  // so that whoever does not read is soon noticed
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  }
  ~Client() { hang_up(); }

  Client& send(const std::string& bytes) {
    EXPECT_EQ(::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL), ssize_t(bytes.size()));
    return *this;
  }
  void end_of_input() { shutdown(fd_, SHUT_WR); }
  void hang_up() { close(std::exchange(fd_, -1)); }
  // Up to `end`, or until the server closes.
  std::string read_to(const std::string& end) {
    std::string got;
    char piece[4096];
    while (end.empty() || got.find(end) == got.npos) {
      const ssize_t n = recv(fd_, piece, sizeof piece, 0);
      if (n <= 0) break;
      got.append(piece, size_t(n));
    }
    return got;
  }
  std::string read_all() { return read_to(""); }
  bool has_bytes() const {
    char byte;
    return recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
  }

 private:
  int fd_;
};

// Answers by path, and keeps what it is told of.
class Handler : public HttpHandler {
 public:
  void on_head(Exchange& exchange) override {
    exchange.add_headers({{"X-Added", "yes"}});
    if (exchange.request().path == "/forbidden") exchange.reply(error_reply(403, "x", "forbidden"));
  }
  void on_request(std::shared_ptr<Exchange> exchange) override {
    const std::string path = exchange->request().path;
    if (path == "/no-memory") throw std::bad_alloc();
    if (path == "/dropped") return;
    if (path == "/wait") {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(exchange);
      return came_.set_value();
    }
    const auto body = exchange->take_body();
    exchange->reply({.body = path + ":" + *body + ";"});
  }
  void on_refusal(const HttpRefusal& refusal) override {
    const std::lock_guard lock(mutex_);
    reasons_.push_back(refusal.reason);
  }
  HttpReply in_form_of(std::string_view path, HttpReply error) const override {
    error.headers.emplace_back("X-Path", path);
    return error;
  }

  // The next request to /wait.
  std::shared_ptr<Exchange> next() {
    came_.get_future().wait();
    const std::lock_guard lock(mutex_);
    came_ = {};
    return std::move(waiting_.back());
  }
  std::vector<std::string> reasons() {
    const std::lock_guard lock(mutex_);
    return reasons_;
  }

 private:
  std::mutex mutex_;
  std::promise<void> came_;
  std::vector<std::shared_ptr<Exchange>> waiting_;
  std::vector<std::string> reasons_;
};

class HttpServerTest : public testing::Test {
 protected:
  static HttpOptions options() {
    HttpOptions options;
    options.port = 0;
    options.body_memory = 1 << 20;
    options.limits.body_bytes = 1 << 20;
    return options;
  }
  static std::string post(const std::string& path, const std::string& body,
                          const std::string& more = "Connection: close\r\n") {
    return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\n" + more +
           "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }
  // Waits for what another thread is about to do.
  static void wait_for(const std::function<bool()>& condition) {
    while (!condition()) std::this_thread::yield();
  }

  Handler handler_;
  HttpServer server_{options(), handler_};
};

TEST_F(HttpServerTest, AnswersOneAfterTheOther) {
  Client client(server_);
  client.send(post("/a", "1", "") + post("/b", "2", "") + post("/c", "3"));
  const std::string got = client.read_all();
  EXPECT_THAT(got, HasSubstr("X-Added: yes"));
  EXPECT_LT(got.find("/a:1;"), got.find("/b:2;"));
  EXPECT_LT(got.find("/b:2;"), got.find("/c:3;"));
  EXPECT_THAT(got, EndsWith("/c:3;"));
}

TEST_F(HttpServerTest, WhatTheHeadForbidsIsNotRead) {
  Client client(server_);
  client.send("POST /forbidden HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
  EXPECT_THAT(client.read_all(),
              AllOf(StartsWith("HTTP/1.1 403 "), HasSubstr("Connection: close")));
  Client other(server_);  // without a body the connection is as good as before
  other.send("GET /forbidden HTTP/1.1\r\nHost: a\r\n\r\n" + post("/a", "1"));
  EXPECT_THAT(other.read_all(), AllOf(StartsWith("HTTP/1.1 403 "), EndsWith("/a:1;")));
}

TEST_F(HttpServerTest, AsksForABodyThatIsHeldBack) {
  Client client(server_);
  client.send(
      "POST /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n"
      "Content-Length: 1\r\n\r\n");
  EXPECT_EQ(client.read_to("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("x");
  EXPECT_THAT(client.read_all(), AllOf(StartsWith("HTTP/1.1 200 "), EndsWith("/a:x;")));
}

TEST_F(HttpServerTest, BodiesShareTheirMemory) {
  const std::string body(700 << 10, 'x');
  Client first(server_);
  first.send(post("/wait", body));
  auto exchange = handler_.next();
  {
    Client second(server_);
    second.send("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 7; ++i) second.send("10000\r\n" + std::string(0x10000, 'x') + "\r\n");
    EXPECT_THAT(second.read_all(), AllOf(StartsWith("HTTP/1.1 503 "), HasSubstr("Retry-After: 1"),
                                         HasSubstr("X-Added"), HasSubstr("body_memory")));
  }
  // As soon as it is dropped, and not when it is answered, there is room again.
  EXPECT_EQ(exchange->take_body()->size(), body.size());
  EXPECT_THAT(Client(server_).send(post("/a", body)).read_all(), StartsWith("HTTP/1.1 200 "));
  exchange->reply({});
  EXPECT_THAT(first.read_all(), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpServerTest, AClientThatHasSaidAllStillGetsItsAnswer) {
  for (const bool streamed : {false, true}) {
    Client client(server_);
    client.send(post("/wait", ""));
    client.end_of_input();
    const auto exchange = handler_.next();
    if (streamed) {
      exchange->begin({});
      exchange->keep_alive("ping", std::chrono::hours(1));
      exchange->write("piece");
      exchange->end();
    } else {
      EXPECT_EQ(client.read_to("HTTP/1.1 "), "HTTP/1.1 ");  // asks whether it is there
      exchange->reply({.body = "whole"});
    }
    const std::string got = client.read_all();
    EXPECT_THAT(got, HasSubstr("200 OK\r\n"));
    EXPECT_THAT(got, EndsWith(streamed ? "5\r\npiece\r\n0\r\n\r\n" : "whole"));
    EXPECT_EQ(got.find("HTTP/1.1 ", 1), got.npos);
    EXPECT_FALSE(exchange->gone().stop_requested());
  }
}

TEST_F(HttpServerTest, AClientThatHangsUpIsNoticedWhateverItSentBefore) {
  for (const std::string& ahead : {std::string(), std::string("G"), std::string(200000, 'x')}) {
    for (const bool streamed : {false, true}) {
      Client client(server_);
      client.send(post("/wait", "", ""));
      const auto exchange = handler_.next();
      if (streamed) {
        exchange->begin({});
        exchange->keep_alive("ping", std::chrono::hours(1));
      }
      client.send(ahead);
      client.hang_up();
      wait_for([&] { return exchange->gone().stop_requested(); });
      EXPECT_TRUE(exchange->has_room());  // nobody need wait any more
    }
  }
}

TEST_F(HttpServerTest, AClientThatReadsSlowlyIsWaitedFor) {
  constexpr int kPieces = 4096;
  const std::string piece(10000, 'x');
  Client client(server_);
  client.send(post("/wait", ""));
  const auto exchange = handler_.next();
  exchange->begin({});
  std::mutex mutex;
  int n = 0;
  const auto write = [&] {
    const std::lock_guard lock(mutex);
    for (; n < kPieces && exchange->has_room(); ++n) exchange->write(piece);
    if (n == kPieces) exchange->end();
    return n;
  };
  exchange->on_room(write);
  EXPECT_LT(write(), kPieces);  // the system's buffers hold no 40 MB
  const std::string got = client.read_all();
  EXPECT_EQ(std::count(got.begin(), got.end(), 'x'), kPieces * 10000);
  EXPECT_THAT(got, EndsWith("0\r\n\r\n"));
}

TEST_F(HttpServerTest, NoChunksForHttp10) {
  Client client(server_);
  client.send("POST /wait HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const auto exchange = handler_.next();
  exchange->begin({});
  exchange->write("one");
  exchange->write("two");
  exchange->end();
  const std::string got = client.read_all();
  EXPECT_THAT(got, AllOf(EndsWith("\r\n\r\nonetwo"), HasSubstr("Connection: close"),
                         testing::Not(HasSubstr("chunked"))));
}

TEST_F(HttpServerTest, AFailureEndsOneConnection) {
  Client(server_).send(post("/no-memory", "")).read_all();
  EXPECT_THAT(handler_.reasons(), testing::Contains("out_of_memory"));
  EXPECT_THAT(Client(server_).send(post("/dropped", "")).read_all(), StartsWith("HTTP/1.1 500 "));
  EXPECT_THAT(Client(server_).send(post("/a", "1")).read_all(), EndsWith("/a:1;"));
  wait_for([&] { return server_.n_connections() == 0; });
}

TEST_F(HttpServerTest, HeadHasNoBody) {
  Client client(server_);
  client.send("HEAD /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.read_all(), AllOf(HasSubstr("Content-Length: 4"), EndsWith("\r\n\r\n")));
}

// So that a proxy may ask another server as long as nothing was said.
TEST_F(HttpServerTest, AHeadGoesOutWithWhatComesNext) {
  Handler handler;
  HttpOptions options;
  options.port = 0;
  options.n_threads = 1;  // which does one thing after the other
  const HttpServer server(options, handler);
  for (const bool pinged : {false, true}) {
    Client client(server);
    client.send(post("/wait", ""));
    const auto exchange = handler.next();
    exchange->begin({});
    EXPECT_THAT(Client(server).send(post("/a", "1")).read_all(), EndsWith("/a:1;"));
    EXPECT_FALSE(client.has_bytes());
    if (pinged) {
      exchange->keep_alive("ping", std::chrono::milliseconds(1));
    } else {
      exchange->write("ping");
    }
    EXPECT_THAT(client.read_to("ping"),
                AllOf(StartsWith("HTTP/1.1 200 "), HasSubstr("\r\n\r\n4\r\nping")));
    exchange->end();
  }
}

TEST(HttpServer, ListensOnNames) {
  Handler handler;
  HttpOptions options;
  options.port = 0;
  options.address = "localhost";
  const HttpServer server(options, handler);
  EXPECT_THAT(Client(server).send("GET /a HTTP/1.0\r\n\r\n").read_all(), EndsWith("/a:;"));
  EXPECT_EQ(host_and_port("localhost", 80), "localhost:80");
  EXPECT_EQ(host_and_port("::1", 80), "[::1]:80");
}

}  // namespace
}  // namespace ei::server
