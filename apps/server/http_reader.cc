#include "apps/server/http_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "apps/cli/ascii.h"

namespace ei::server {
namespace {

using cli::lower_case;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_alnum(char c) { return is_digit(c) || (lower_case(c) >= 'a' && lower_case(c) <= 'z'); }

bool all_of(std::string_view text, auto is) { return std::ranges::all_of(text, is); }

// What methods and names of headers are made of.
bool is_token(std::string_view text) {
  static constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  return !text.empty() &&
         all_of(text, [](char c) { return is_alnum(c) || kMarks.find(c) != kMarks.npos; });
}

bool is_value(std::string_view text) {
  return all_of(text, [](char c) {
    return c == '\t' || (static_cast<unsigned char>(c) >= ' ' && c != '\x7f');
  });
}

// A name, an IPv4 address or an IPv6 address in brackets, with or without a port; or nothing.
bool is_authority(std::string_view text) {
  static constexpr std::string_view kMarks = "-._~!$&'()*+,;=%";
  const auto is_port = [](std::string_view rest) {
    return rest.empty() || (rest[0] == ':' && all_of(rest.substr(1), is_digit));
  };
  if (text.starts_with('[')) {
    const size_t end = text.find(']');
    return end != text.npos && end > 1 && is_port(text.substr(end + 1)) &&
           all_of(text.substr(1, end - 1), [](char c) {
             return is_digit(c) || c == ':' || c == '.' ||
                    (lower_case(c) >= 'a' && lower_case(c) <= 'f');
           });
  }
  const size_t colon = std::min(text.find(':'), text.size());
  return is_port(text.substr(colon)) && all_of(text.substr(0, colon), [](char c) {
           return is_alnum(c) || kMarks.find(c) != kMarks.npos;
         });
}

std::string_view trimmed(std::string_view text) {
  const size_t begin = std::min(text.find_first_not_of(" \t"), text.size());
  return text.substr(begin, text.find_last_not_of(" \t") + 1 - begin);
}

// Whether a comma-separated list has `element`, which is in lower case.
bool has_element(std::string_view list, std::string_view element) {
  while (true) {
    const size_t comma = list.find(',');
    if (lower_case(trimmed(list.substr(0, comma))) == element) return true;
    if (comma == list.npos) return false;
    list.remove_prefix(comma + 1);
  }
}

// "%2F" -> "/"; nothing when a % is followed by something else, or stands for NUL.
std::optional<std::string> percent_decoded(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    unsigned char byte = 0;
    const char* digits = text.data() + i + 1;
    if (i + 2 >= text.size() || std::from_chars(digits, digits + 2, byte, 16).ptr != digits + 2 ||
        byte == 0)
      return {};
    out += static_cast<char>(byte);
    i += 2;
  }
  return out;
}

}  // namespace

size_t HttpReader::read(std::string_view bytes) {
  const size_t n = bytes.size();
  if (state_ == State::kBody && part_ == Part::kSized && left_ == 0) state_ = State::kDone;
  for (const State before = state_; state_ == before && !bytes.empty();) {
    switch (state_) {
      case State::kHead:
        if (line(bytes, limits_.head_bytes - head_bytes_)) on_line();
        break;
      case State::kBody:
        read_body(bytes);
        break;
      case State::kDone:
      case State::kRefused:
        return n - bytes.size();
    }
  }
  return n - bytes.size();
}

bool HttpReader::begun() const {
  const bool is_empty = line_.empty() || line_[0] == '\r';
  return state_ != State::kHead || part_ != Part::kStartLine || !is_empty;
}

bool HttpReader::has_body() const {
  return state_ == State::kBody && (part_ != Part::kSized || left_ > 0);
}

void HttpReader::next() {
  drop();
  *this = HttpReader(limits_);
}

// Gives the memory back, which assigning an empty string does not.
void HttpReader::drop() {
  std::string().swap(body_);
  std::string().swap(line_);
}

// Moves bytes to line_ up to the end of the line; whether that is there. `most`: bytes it may have.
bool HttpReader::line(std::string_view& bytes, size_t most) {
  const size_t end = bytes.find('\n');
  const size_t n = end == bytes.npos ? bytes.size() : end + 1;
  if (line_.size() + n > most) {
    too_long();
    return false;
  }
  line_.append(bytes.substr(0, n));
  bytes.remove_prefix(n);
  if (end == bytes.npos) return false;
  if (line_.size() < 2 || line_.find('\r') != line_.size() - 2) {
    refuse(400, "a line does not end with CR LF");
    return false;
  }
  return true;
}

void HttpReader::too_long() {
  if (part_ == Part::kStartLine)
    return refuse(414, fmt::format("its first line is longer than {} bytes", limits_.head_bytes),
                  "header_too_long");
  if (part_ == Part::kHeaders || part_ == Part::kTrailers)
    return refuse(431, fmt::format("its header is longer than {} bytes", limits_.head_bytes),
                  "header_too_long");
  refuse(400, fmt::format("the line of a chunk is longer than {} bytes", limits_.chunk_line_bytes));
}

// A line of the head, or of the trailers, which are dropped.
void HttpReader::on_line() {
  head_bytes_ += line_.size();
  const std::string whole = std::exchange(line_, {});
  const std::string_view text = std::string_view(whole).substr(0, whole.size() - 2);
  if (part_ == Part::kStartLine) {
    if (!text.empty())
      start_line(text);  // an empty line in front is left over from somebody's body
    return;
  }
  if (text.empty()) {
    if (part_ == Part::kHeaders) return end_of_head();
    state_ = State::kDone;
    return;
  }
  if (++n_headers_ > limits_.n_headers)
    return refuse(431, fmt::format("it has more than {} headers", limits_.n_headers),
                  "header_too_long");
  const size_t colon = std::min(text.find(':'), text.size());
  const std::string_view value = trimmed(text.substr(std::min(colon + 1, text.size())));
  if (colon == text.size() || !is_token(text.substr(0, colon)) || !is_value(value))
    return refuse(400, "a header is malformed");
  if (part_ == Part::kHeaders) header(lower_case(text.substr(0, colon)), value);
}

void HttpReader::start_line(std::string_view text) {
  part_ = Part::kHeaders;
  const size_t first = std::min(text.find(' '), text.size());
  const size_t last = text.rfind(' ');
  const std::string_view version = last == text.npos ? "" : text.substr(last + 1);
  if (last == text.npos || first == last || !is_token(text.substr(0, first)) ||
      version.size() != 8 || !version.starts_with("HTTP/") || !is_digit(version[5]) ||
      version[6] != '.' || !is_digit(version[7]))
    return refuse(400, "its first line is malformed");
  if (version[5] != '1') return refuse(400, "its version is not 1.1 or 1.0");
  head_.is_http_1_0 = version[7] == '0';
  head_.method = text.substr(0, first);
  target(text.substr(first + 1, last - first - 1));
}

// "/path?query", "http://host/path?query", or "*" for OPTIONS.
void HttpReader::target(std::string_view text) {
  if (!all_of(text, [](char c) { return c > ' ' && c < '\x7f' && c != '#'; }))
    return refuse(400, "its target holds what no target may");
  if (text == "*" && head_.method == "OPTIONS") {
    head_.path = text;
    return;
  }
  const size_t scheme = std::min(text.find("://"), text.size());
  if (!text.starts_with('/') && scheme < text.size()) {
    const std::string name = lower_case(text.substr(0, scheme));
    text.remove_prefix(scheme + 3);
    const size_t end = std::min(text.find_first_of("/?"), text.size());
    const std::string_view authority = text.substr(0, end);
    if ((name != "http" && name != "https") || authority.empty() || !is_authority(authority))
      return refuse(400, "its target is of no http server");
    target_host_ = lower_case(authority);
    text.remove_prefix(end);
    if (!text.starts_with('/')) text = "/";
  }
  if (!text.starts_with('/')) return refuse(400, "its target is no path");
  auto path = percent_decoded(text.substr(0, text.find('?')));
  if (!path) return refuse(400, "its path is not percent-encoded correctly");
  head_.path = std::move(*path);
}

void HttpReader::header(std::string name, std::string_view value) {
  // There may be one of each: what comes twice, a proxy may have read the other way.
  static constexpr std::string_view kSingle[] = {"host",
                                                 "content-length",
                                                 "transfer-encoding",
                                                 "content-encoding",
                                                 "content-type",
                                                 "origin",
                                                 "authorization",
                                                 "x-api-key",
                                                 "expect",
                                                 "access-control-request-headers"};
  if (name == "connection") {
    fields_[name].append(value).append(",");
  } else if (std::ranges::find(kSingle, name) != std::end(kSingle)) {
    if (!fields_.try_emplace(name, value).second)
      refuse(400, fmt::format("it has more than one '{}'", name));
  }
}

void HttpReader::end_of_head() {
  const auto host = fields_.find("host");
  if (host == fields_.end() && !head_.is_http_1_0) return refuse(400, "it has no 'Host'");
  if (host != fields_.end() && !is_authority(host->second))
    return refuse(400, "its 'Host' is malformed");
  head_.host = !target_host_.empty() ? target_host_ : lower_case(fields_["host"]);
  head_.origin = lower_case(fields_["origin"]);
  head_.authorization = fields_["authorization"];
  head_.api_key = fields_["x-api-key"];
  head_.content_type = fields_["content-type"];
  head_.requested_headers = fields_["access-control-request-headers"];
  const std::string& connection = fields_["connection"];
  head_.keeps_alive = !has_element(connection, "close") &&
                      (!head_.is_http_1_0 || has_element(connection, "keep-alive"));
  if (!frame_body()) return;
  if (const std::string coding = lower_case(fields_["content-encoding"]);
      !coding.empty() && coding != "identity") {
    refuse(415, fmt::format("its body is encoded as '{}', expected none", coding),
           "unsupported_encoding");
    refusal_.headers.emplace_back("Accept-Encoding", "identity");
    return;
  }
  if (const std::string& expected = fields_["expect"]; !expected.empty() && !head_.is_http_1_0) {
    if (lower_case(expected) != "100-continue")
      return refuse(417, "it expects what this server does not do", "unknown_expectation");
    head_.expects_continue = true;
  }
  fields_.clear();
  head_bytes_ = n_headers_ = 0;
  state_ = State::kBody;
}

// How the end of the body is known; whether it is.
bool HttpReader::frame_body() {
  part_ = Part::kSized;
  const auto coding = fields_.find("transfer-encoding");
  const auto length = fields_.find("content-length");
  if (coding != fields_.end()) {
    if (length != fields_.end() || head_.is_http_1_0)
      return refuse(400, "it has a 'Transfer-Encoding' beside a 'Content-Length', or in HTTP/1.0"),
             false;
    if (lower_case(coding->second) != "chunked")
      return refuse(
                 501,
                 fmt::format("its 'Transfer-Encoding' is '{}', expected 'chunked'", coding->second),
                 "unsupported_encoding"),
             false;
    part_ = Part::kChunkSize;
  } else if (length != fields_.end()) {
    const std::string& digits = length->second;
    if (digits.empty() || !all_of(digits, is_digit))
      return refuse(400, "its 'Content-Length' is no number"), false;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), left_);
    if (error != std::errc() || left_ > limits_.body_bytes) return body_too_long(), false;
  }
  return true;
}

void HttpReader::read_body(std::string_view& bytes) {
  if (part_ == Part::kSized || part_ == Part::kChunkData) {
    if (part_ == Part::kSized && body_.empty()) body_.reserve(left_);
    const size_t n = std::min<uint64_t>(left_, bytes.size());
    body_.append(bytes.substr(0, n));
    bytes.remove_prefix(n);
    left_ -= n;
    if (left_ == 0 && part_ == Part::kSized) state_ = State::kDone;
    if (left_ == 0 && part_ == Part::kChunkData) part_ = Part::kChunkEnd;
  } else if (part_ == Part::kTrailers) {
    if (line(bytes, limits_.head_bytes - head_bytes_)) on_line();
  } else if (line(bytes, limits_.chunk_line_bytes)) {
    chunk_line();
  }
}

// "1a;extension", or the end of a chunk's data.
void HttpReader::chunk_line() {
  const std::string whole = std::exchange(line_, {});
  const std::string_view text = std::string_view(whole).substr(0, whole.size() - 2);
  if (part_ == Part::kChunkEnd) {
    part_ = Part::kChunkSize;
    if (!text.empty()) refuse(400, "a chunk is longer than it says");
    return;
  }
  const std::string_view digits = trimmed(text.substr(0, text.find(';')));
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), left_, 16);
  if (digits.empty() || end != digits.data() + digits.size() || !is_value(text))
    return refuse(400, "the size of a chunk is no number");
  if (error != std::errc() || left_ > limits_.body_bytes - body_.size()) return body_too_long();
  part_ = left_ > 0 ? Part::kChunkData : Part::kTrailers;
}

void HttpReader::body_too_long() {
  refuse(413, fmt::format("its body is longer than {} bytes", limits_.body_bytes), "body_too_long");
}

void HttpReader::refuse(int status, const std::string& what, const std::string& code) {
  state_ = State::kRefused;
  drop();
  refusal_ = error_reply(status, "invalid_request_error",
                         fmt::format("This HTTP request is refused: {}.", what), "", code);
}

}  // namespace ei::server
