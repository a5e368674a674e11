#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace ei::hub {

// What came of one exchange.
struct Response {
  long status = 0;        // 0: no answer
  std::string failure;    // why it broke off, in words; empty: it is whole
  bool may_pass = false;  // what failed, or the status: another try may go well
  std::map<std::string, std::string> headers;  // by their names in lower case
  std::string body;

  std::string header(const std::string& name) const;  // empty: there is none
};

// HTTP and HTTPS, one exchange after the other.
class Http {
 public:
  // Takes what a 200 or 206 has in its body, of which the headers are known; may throw.
  using Sink = std::function<void(const Response&, std::string_view)>;

  // The token, if there is one, is sent to the hosts that are asked, and to none that they redirect
  // to. `certificates`: a file of those that https trusts; empty: the system's.
  Http(std::string token, std::string certificates);
  ~Http();
  Http(const Http&) = delete;

  // Follows redirects. The body of other answers, or of all without a sink, is in the response;
  // more than 64 MiB of it is a failure.
  Response get(const std::string& url, int64_t begin = 0, const Sink& sink = {});
  // Follows redirects within `url`'s host alone, whose headers add up: what a file is says the hub,
  // and not where it lies.
  Response head(const std::string& url);

  static std::string escaped(std::string_view part);  // for a URL; slashes too

 private:
  struct Exchange;
  Response perform(Exchange& exchange);

  struct Curl;
  std::unique_ptr<Curl> curl_;
  std::string token_, certificates_;
};

}  // namespace ei::hub
