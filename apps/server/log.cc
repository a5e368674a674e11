#include "apps/server/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "ei/io/json.h"

namespace ei::server {
namespace {

bool is_json() { return spdlog::get("json") != nullptr; }

void write(spdlog::level::level_enum level, const std::string& event, OrderedJson fields) {
  std::string line;
  if (is_json()) {
    OrderedJson all = {{"event", event}};
    all.update(fields);
    line = all.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
    line.erase(0, 1);  // its brace is the pattern's
  } else {
    line = event;
    for (const auto& [key, value] : fields.items())
      line += " " + key + "=" + value.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  }
  spdlog::default_logger_raw()->log(level, line);
}

}  // namespace

void set_up_log(bool json, bool quiet) {
  spdlog::drop_all();
  auto logger = spdlog::stderr_logger_mt(json ? "json" : "text");
  logger->set_pattern(json ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e","level":"%l",%v)"
                           : "%Y-%m-%d %H:%M:%S.%e %l %v");
  logger->set_level(quiet ? spdlog::level::warn : spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

void log_event(const std::string& event, OrderedJson fields) {
  write(spdlog::level::info, event, std::move(fields));
}

void log_warning(const std::string& event, OrderedJson fields) {
  write(spdlog::level::warn, event, std::move(fields));
}

}  // namespace ei::server
