#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace ei::server {

// How log lines are written to stderr: for people ("... request_done id=req-1 ..."), or one JSON
// object each. Never anything of a prompt or an answer.
void set_up_log(bool json, bool quiet);
void log_event(const std::string& event, nlohmann::ordered_json fields = {});
void log_warning(const std::string& event, nlohmann::ordered_json fields = {});

}  // namespace ei::server
