#include "apps/server/http_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ei::server {
namespace {

using testing::HasSubstr;

// What a stream of bytes was read as: "POST /path host body", and the status of its refusal.
struct Outcome {
  std::vector<std::string> requests;
  int status = 0;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

std::ostream& operator<<(std::ostream& out, const Outcome& x) {
  return out << testing::PrintToString(x.requests) << " " << x.status;
}

constexpr HttpLimits kLimits = {.head_bytes = 1024, .n_headers = 8, .body_bytes = 2048};

class Feeder {
 public:
  explicit Feeder(const HttpLimits& limits = kLimits) : reader_(limits) {}

  void feed(std::string_view bytes) {
    while (reader_.state() != HttpReader::State::kRefused) {
      const auto before = reader_.state();
      bytes.remove_prefix(reader_.read(bytes));
      if (reader_.state() == HttpReader::State::kDone) {
        outcome_.requests.push_back(reader_.head().method + " " + reader_.head().path + " " +
                                    reader_.head().host + " " + reader_.body());
        reader_.next();
      } else if (reader_.state() == before) {
        EXPECT_TRUE(bytes.empty());
        return;
      }
    }
    outcome_.status = reader_.refusal().status;
  }
  const Outcome& outcome() const { return outcome_; }
  HttpReader& reader() { return reader_; }

 private:
  HttpReader reader_;
  Outcome outcome_;
};

Outcome outcome_of(std::string_view bytes) {
  Feeder feeder;
  feeder.feed(bytes);
  return feeder.outcome();
}

HttpHead head_of(std::string_view bytes) {
  HttpReader reader(kLimits);
  reader.read(bytes);
  EXPECT_EQ(reader.state(), HttpReader::State::kBody) << bytes;
  return reader.head();
}

std::string get(const std::string& target, const std::string& headers = "Host: a\r\n") {
  return "GET " + target + " HTTP/1.1\r\n" + headers + "\r\n";
}

std::string post(const std::string& headers, const std::string& rest = "") {
  return "POST / HTTP/1.1\r\nHost: a\r\n" + headers + "\r\n" + rest;
}

const std::string kChunked = "Transfer-Encoding: chunked\r\n";

TEST(HttpReader, TheSameRequestsWhereverTheStreamIsCut) {
  const struct {
    std::string bytes;
    Outcome expected;
  } cases[] = {
      {get("/x?y=1") + post("Content-Length: 3\r\n", "abc") + get("/z"),
       {{"GET /x a ", "POST / a abc", "GET /z a "}}},
      {post(kChunked, "3\r\nabc\r\nA;name=\"value\"\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n") +
           get("/next"),
       {{"POST / a abc0123456789", "GET /next a "}}},
      {"\r\n\r\n" + get("/after-empty-lines"), {{"GET /after-empty-lines a "}}},
      {get("/x") + post("Content-Length: x\r\n"), {{"GET /x a "}, 400}},
      {post(kChunked, "3\r\nabcd\r\n0\r\n\r\n"), {{}, 400}},
      {post("Content-Length: 0\r\n") + "nonsense\r\n", {{"POST / a "}, 400}},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(outcome_of(c.bytes), c.expected);
    for (size_t i = 1; i < c.bytes.size(); ++i) {
      Feeder feeder;
      feeder.feed(c.bytes.substr(0, i));
      feeder.feed(c.bytes.substr(i));
      ASSERT_EQ(feeder.outcome(), c.expected) << "cut at " << i;
    }
    Feeder feeder;
    for (const char byte : c.bytes) feeder.feed({&byte, 1});
    EXPECT_EQ(feeder.outcome(), c.expected) << "byte by byte";
  }
}

TEST(HttpReader, RefusesWhatTwoReadersMightReadDifferently) {
  const struct {
    std::string bytes;
    int status;
  } cases[] = {
      // Where the body ends.
      {post("Content-Length: 1\r\nContent-Length: 1\r\n", "a"), 400},
      {post("Content-Length: 1, 1\r\n", "a"), 400},
      {post("Content-Length: +1\r\n", "a"), 400},
      {post("Content-Length: -1\r\n", "a"), 400},
      {post("Content-Length: 0x1\r\n", "a"), 400},
      {post("Content-Length:\r\n"), 400},
      {post("Content-Length: 99999999999999999999\r\n"), 413},
      {post("Content-Length: 2049\r\n"), 413},
      {post("Content-Length: 3\r\n" + kChunked, "0\r\n\r\n"), 400},
      {post(kChunked + kChunked, "0\r\n\r\n"), 400},
      {post("Transfer-Encoding: gzip, chunked\r\n"), 501},
      {post("Transfer-Encoding: chunked, identity\r\n"), 501},
      {post("Transfer-Encoding: xchunked\r\n"), 501},
      {post("Transfer-Encoding: \vchunked\r\n"), 400},
      {post("Transfer-Encoding:\r\n"), 501},
      {"POST / HTTP/1.0\r\n" + kChunked + "\r\n0\r\n\r\n", 400},
      {post(kChunked, "zz\r\n"), 400},
      {post(kChunked, "\r\n"), 400},
      {post(kChunked, "-1\r\n"), 400},
      {post(kChunked, "1 2\r\n"), 400},
      {post(kChunked, "fffffffffffffffff\r\n"), 413},
      {post(kChunked, "801\r\n"), 413},
      {post(kChunked, "800\r\n" + std::string(2048, 'x') + "\r\n1\r\n"), 413},
      {post(kChunked,
            "1\r\nab"
            "\r\n"),
       400},
      {post(kChunked, "1\na\r\n"), 400},
      {post(kChunked, "0\r\nno trailer\r\n\r\n"), 400},
      // Lines and headers.
      {"GET / HTTP/1.1\nHost: a\n\n", 400},
      {"GET / HTTP/1.1\r\nHost: a\r\nX: \ry\r\n\r\n", 400},
      {get("/", "Host: a\r\n folded: x\r\n"), 400},
      {get("/", "Host: a\r\nName : x\r\n"), 400},
      {get("/", "Host: a\r\n: x\r\n"), 400},
      {get("/", std::string("Host: a\r\nX: \0\r\n", 14)), 400},
      {get("/", "Host: a\r\nno colon\r\n"), 400},
      // Whose it is.
      {get("/", ""), 400},
      {get("/", "Host: a\r\nhost: a\r\n"), 400},
      {get("/", "Host: a b\r\n"), 400},
      {get("/", "Host: a:b\r\n"), 400},
      {get("/", "Host: user@a\r\n"), 400},
      {get("/", "Host: [::1\r\n"), 400},
      {get("/", "Host: a\r\nAuthorization: Bearer x\r\nAuthorization: Bearer y\r\n"), 400},
      // The first line.
      {"GET  / HTTP/1.1\r\n", 400},
      {"GET / HTTP/1.1 \r\n", 400},
      {"GET /\r\n", 400},
      {"G(T / HTTP/1.1\r\n", 400},
      {"GET / HTTP/2.0\r\n", 400},
      {"GET / http/1.1\r\n", 400},
      {"PRI * HTTP/2.0\r\n", 400},
      {get("*"), 400},
      {get("x"), 400},
      {get("/%"), 400},
      {get("/%4"), 400},
      {get("/%zz"), 400},
      {get("/%00"), 400},
      {get("/#x"), 400},
      {get("/\xc3\xa9"), 400},
      {get("ftp://a/"), 400},
      {get("http:///"), 400},
      {get("http://user@a/"), 400},
      {"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 400},
      // What this server does not do.
      {post("Content-Encoding: gzip\r\nContent-Length: 1\r\n", "a"), 415},
      {post("Content-Length: 1\r\nExpect: 200-ok\r\n", "a"), 417},
  };
  for (const auto& c : cases) {
    const Outcome outcome = outcome_of(c.bytes + get("/smuggled"));
    EXPECT_EQ(outcome.status, c.status) << c.bytes;
    EXPECT_EQ(outcome.requests, std::vector<std::string>()) << c.bytes;
  }
}

TEST(HttpReader, ReadsWhatClientsMayWrite) {
  EXPECT_EQ(head_of(get("/v1/models/acme%2Fnee%64le?x=%")).path, "/v1/models/acme/needle");
  EXPECT_EQ(head_of(get("HTTP://Other.Example:80?x")).path, "/");
  EXPECT_EQ(head_of(get("http://Other.Example:80/x")).host, "other.example:80");
  EXPECT_EQ(head_of(get("/", "hOST:LocalHost:1 \r\n")).host, "localhost:1");
  EXPECT_EQ(head_of(get("/", "Host: [::1]:8000\r\n")).host, "[::1]:8000");
  EXPECT_EQ(head_of("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").path, "*");
  EXPECT_EQ(head_of(get("/", "Host: a\r\nORIGIN: HTTP://A.Example\r\n")).origin,
            "http://a.example");
  EXPECT_EQ(head_of(get("/", "Host: a\r\nauthorization:\tBearer  x y\t\r\n")).authorization,
            "Bearer  x y");
  EXPECT_TRUE(head_of("GET / HTTP/1.0\r\n\r\n").is_http_1_0);
  EXPECT_TRUE(head_of(post("Expect: 100-Continue\r\nContent-Length: 1\r\n")).expects_continue);
  EXPECT_FALSE(head_of("POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expects_continue);
  EXPECT_EQ(outcome_of(post("Content-Encoding: identity\r\nContent-Length: 1\r\n", "a")).requests,
            std::vector<std::string>{"POST / a a"});
  EXPECT_EQ(outcome_of(post("TRANSFER-ENCODING: Chunked\r\n", "01\r\na\r\n000\r\n\r\n")).requests,
            std::vector<std::string>{"POST / a a"});
}

TEST(HttpReader, WhetherTheConnectionIsKept) {
  const auto keeps = [](const char* version, const char* connection) {
    return head_of(std::string("GET / HTTP/") + version + "\r\nHost: a\r\n" + connection + "\r\n")
        .keeps_alive;
  };
  EXPECT_TRUE(keeps("1.1", ""));
  EXPECT_TRUE(keeps("1.1", "Connection: Keep-Alive\r\n"));
  EXPECT_FALSE(keeps("1.1", "Connection: TE , Close\r\n"));
  EXPECT_FALSE(keeps("1.1", "Connection: keep-alive\r\nConnection: close\r\n"));
  EXPECT_FALSE(keeps("1.0", ""));
  EXPECT_TRUE(keeps("1.0", "Connection: keep-alive\r\n"));
}

// Each of these would go on for ever: it is refused after no more than the limits allow.
TEST(HttpReader, EverythingHasABound) {
  const struct {
    std::string begin, again;
    int status;
    size_t most;
  } cases[] = {
      {"", "\r\n", 414, 1026},
      {"", "x", 414, 1026},
      {"GET /", "x", 414, 1026},
      {"GET / HTTP/1.1\r\nX: ", "x", 431, 1026},
      {"GET / HTTP/1.1\r\n", "X: x\r\n", 431, 200},
      {post(kChunked), "0", 400, 1200},
      {post(kChunked, "1;"), "extension", 400, 1200},
      {post(kChunked, "1\r\na"), "x", 400, 1200},
      {post(kChunked, "0\r\n"), "X: x\r\n", 431, 200},
      {post(kChunked, "0\r\nX: "), "x", 431, 1200},
      {post(kChunked), "1\r\na\r\n", 413, 6 * 2048 + 200},
  };
  for (const auto& c : cases) {
    Feeder feeder;
    feeder.feed(c.begin);
    size_t n = c.begin.size();
    for (; feeder.outcome().status == 0 && n < 100000; n += c.again.size()) feeder.feed(c.again);
    EXPECT_EQ(feeder.outcome().status, c.status) << c.begin << c.again;
    EXPECT_LE(n, c.most) << c.begin << c.again;
    EXPECT_EQ(feeder.reader().body().capacity(), std::string().capacity());
  }
  // Extensions and trailers are not kept: chunks that have them are the body alone.
  Feeder feeder;
  feeder.feed(post(kChunked));
  for (int i = 0; i < 100; ++i) feeder.feed("1;" + std::string(1000, 'x') + "\r\na\r\n");
  EXPECT_LE(feeder.reader().body().capacity(), 200);
}

TEST(HttpReader, ARefusalSaysWhy) {
  HttpReader reader(kLimits);
  reader.read(post("Content-Encoding: br\r\nContent-Length: 1\r\n"));
  EXPECT_THAT(reader.refusal().body, HasSubstr("'br'"));
  EXPECT_EQ(reader.refusal().reason, "unsupported_encoding");
}

TEST(HttpReader, KnowsWhetherARequestHasBegun) {
  HttpReader reader(kLimits);
  EXPECT_FALSE(reader.begun());
  reader.read("\r\n\r");
  EXPECT_FALSE(reader.begun());
  reader.read("\nG");
  EXPECT_TRUE(reader.begun());
}

}  // namespace
}  // namespace ei::server
