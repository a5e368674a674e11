#include "apps/eval/page.h"

namespace ei::eval {

std::string fill_page(std::string_view page, const nlohmann::ordered_json& data) {
  constexpr std::string_view kMark = "PAGE_DATA";
  std::string json;
  for (const char c : data.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace))
    json += c == '<' ? std::string("\\u003c") : std::string(1, c);
  std::string out(page);
  return out.replace(out.find(kMark), kMark.size(), json);
}

}  // namespace ei::eval
