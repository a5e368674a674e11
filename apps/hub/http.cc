#include "apps/hub/http.h"

#include <curl/curl.h>

#include <algorithm>
#include <exception>

#include "apps/cli/ascii.h"
#include "ei/base/fail.h"

namespace ei::hub {
namespace {

constexpr size_t kMaxBody = 64 << 20;
constexpr long kMaxRedirects = 10;

// Scheme, host and port.
std::string_view origin(std::string_view url) {
  const size_t host = url.find("://");
  return host == url.npos ? url : url.substr(0, url.find('/', host + 3));
}

// What a connection that works suffers now and then.
bool is_connection(CURLcode code) {
  constexpr CURLcode kOnes[] = {CURLE_COULDNT_CONNECT, CURLE_OPERATION_TIMEDOUT, CURLE_PARTIAL_FILE,
                                CURLE_GOT_NOTHING,     CURLE_RECV_ERROR,         CURLE_SEND_ERROR,
                                CURLE_HTTP2,           CURLE_HTTP2_STREAM};
  return std::ranges::find(kOnes, code) != std::end(kOnes);
}

}  // namespace

std::string Response::header(const std::string& name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? "" : it->second;
}

struct Http::Curl {
  CURL* handle = nullptr;

  Curl() {
    static const CURLcode ready = curl_global_init(CURL_GLOBAL_DEFAULT);
    if (ready == CURLE_OK) handle = curl_easy_init();
    require(handle != nullptr, "libcurl cannot be used");
  }
  ~Curl() { curl_easy_cleanup(handle); }
};

struct Http::Exchange {
  CURL* handle;
  std::string url;
  const Sink& sink;
  Response response;
  std::exception_ptr thrown;  // by what libcurl called, which is C

  static size_t on_header(char* data, size_t, size_t n, void* self) {
    return static_cast<Exchange*>(self)->guarded(n, [&](Exchange& e) {
      const std::string_view line(data, n);
      if (line.starts_with("HTTP/")) e.response.headers.clear();  // those of the last redirect
      if (const size_t colon = line.find(':'); colon != line.npos)
        e.response.headers[cli::lower_case(line.substr(0, colon))] =
            cli::trimmed(line.substr(colon + 1));
    });
  }

  static size_t on_body(char* data, size_t, size_t n, void* self) {
    return static_cast<Exchange*>(self)->guarded(n, [&](Exchange& e) {
      curl_easy_getinfo(e.handle, CURLINFO_RESPONSE_CODE, &e.response.status);
      if (e.sink && (e.response.status == 200 || e.response.status == 206)) {
        e.sink(e.response, {data, n});
      } else {
        require(e.response.body.size() + n <= kMaxBody, "{}: the answer is longer than {} MiB",
                e.url, kMaxBody >> 20);
        e.response.body.append(data, n);
      }
    });
  }

  template <class Action>
  size_t guarded(size_t n, Action&& action) {
    try {
      action(*this);
      return n;
    } catch (...) {
      thrown = std::current_exception();
      return n == 0 ? 1 : 0;  // ends the exchange
    }
  }
};

Http::Http(std::string token, std::string certificates)
    : curl_(std::make_unique<Curl>()),
      token_(std::move(token)),
      certificates_(std::move(certificates)) {}
Http::~Http() = default;

Response Http::perform(Exchange& exchange) {
  CURL* const handle = curl_->handle;
  char error[CURL_ERROR_SIZE] = "";
  curl_easy_setopt(handle, CURLOPT_URL, exchange.url.c_str());
  curl_easy_setopt(handle, CURLOPT_ERRORBUFFER, error);
  curl_easy_setopt(handle, CURLOPT_USERAGENT, "entropyinfer");
  curl_easy_setopt(handle, CURLOPT_PROTOCOLS_STR, "http,https");
  // A hub that is asked in secret is not left for a place that is not.
  curl_easy_setopt(handle, CURLOPT_REDIR_PROTOCOLS_STR,
                   exchange.url.starts_with("https:") ? "https" : "http,https");
  curl_easy_setopt(handle, CURLOPT_MAXREDIRS, kMaxRedirects);
  curl_easy_setopt(handle, CURLOPT_CONNECTTIMEOUT, 30L);
  if (!certificates_.empty()) curl_easy_setopt(handle, CURLOPT_CAINFO, certificates_.c_str());
  // A minute without a byte is a broken connection.
  curl_easy_setopt(handle, CURLOPT_LOW_SPEED_LIMIT, 1L);
  curl_easy_setopt(handle, CURLOPT_LOW_SPEED_TIME, 60L);
  if (!token_.empty()) {
    curl_easy_setopt(handle, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
    curl_easy_setopt(handle, CURLOPT_XOAUTH2_BEARER, token_.c_str());
  }
  curl_easy_setopt(handle, CURLOPT_HEADERFUNCTION, Exchange::on_header);
  curl_easy_setopt(handle, CURLOPT_HEADERDATA, &exchange);
  curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, Exchange::on_body);
  curl_easy_setopt(handle, CURLOPT_WRITEDATA, &exchange);

  const CURLcode code = curl_easy_perform(handle);
  curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &exchange.response.status);
  if (exchange.thrown) std::rethrow_exception(exchange.thrown);
  if (code != CURLE_OK) exchange.response.failure = *error ? error : curl_easy_strerror(code);
  if (code == CURLE_PEER_FAILED_VERIFICATION)
    exchange.response.failure +=
        "; a proxy or hub with a certificate of its own is trusted by SSL_CERT_FILE=FILE.pem";
  Response& response = exchange.response;
  response.may_pass = code == CURLE_OK ? response.status >= 500 : is_connection(code);
  return std::move(response);
}

Response Http::get(const std::string& url, int64_t begin, const Sink& sink) {
  curl_easy_reset(curl_->handle);
  curl_easy_setopt(curl_->handle, CURLOPT_FOLLOWLOCATION, 1L);
  const std::string range = fmt::format("{}-", begin);
  if (begin > 0) curl_easy_setopt(curl_->handle, CURLOPT_RANGE, range.c_str());
  Exchange exchange{curl_->handle, url, sink, {}, {}};
  return perform(exchange);
}

Response Http::head(const std::string& url) {
  std::string at = url;
  std::map<std::string, std::string> headers;
  for (long n = 0; n < kMaxRedirects; ++n) {
    curl_easy_reset(curl_->handle);
    curl_easy_setopt(curl_->handle, CURLOPT_NOBODY, 1L);
    const Sink none;
    Exchange exchange{curl_->handle, at, none, {}, {}};
    Response response = perform(exchange);
    response.headers.merge(headers);
    const char* next = nullptr;
    curl_easy_getinfo(curl_->handle, CURLINFO_REDIRECT_URL, &next);
    if (next == nullptr || origin(next) != origin(url)) return response;
    at = next;
    headers = std::move(response.headers);
  }
  fail("{}: redirects without end", url);
}

std::string Http::escaped(std::string_view part) {
  std::string out;
  for (const char c : part) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) ||
                       std::string_view("-._~").find(c) != std::string_view::npos;
    out += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

}  // namespace ei::hub
