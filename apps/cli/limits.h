#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string_view>

namespace ei::cli {

// 4096 of "4096" or "4k", 1048576 of "1M"; nothing of what is no whole number.
std::optional<int64_t> parse_count(std::string_view text);

// For an option's transform(): a whole number, spelt as parse_count() reads it, from `min` to
// `max`. All lengths and counts of tokens are given so. What is wrong is said in words.
CLI::Validator count(int64_t min, int64_t max = INT64_MAX);

// For an option's check(): a number from `min` to `max`.
CLI::Validator between(double min, double max);

}  // namespace ei::cli
