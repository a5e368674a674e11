#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "ei/engine/engine.h"

namespace ei::cli {

// The answer and all that was measured, for --json. `policy` is PolicyOptions::describe().
nlohmann::ordered_json to_json(const Generation& generation, double load_ms,
                               const nlohmann::ordered_json& policy);

// The same in one line for people.
std::string stats_line(const Generation& generation);

const char* finish_reason(FinishReason reason);

// To stdout at once. Throws Error when it cannot be written, as to a full disk.
void print(std::string_view text);
void print_json(const nlohmann::ordered_json& json);

// A file, whole or not at all: what was there before stays until it is complete. Throws Error when
// it cannot be written.
void save(const std::filesystem::path& path, std::string_view text);

// One line; what is not UTF-8 in it becomes U+FFFD.
std::string dump(const nlohmann::ordered_json& json);

}  // namespace ei::cli
