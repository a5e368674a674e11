#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "apps/cli/command.h"

namespace ei::eval {

// One line of RULER's data: {"index", "input", "outputs", "length", ..}.
struct RulerLine {
  std::string task;
  int64_t index = 0;
  int64_t length = 0;  // tokens, by RULER's count
  std::string input;
  std::vector<std::string> outputs;
};

// DIR/TASK.jsonl and, as RULER writes them, DIR/TASK/validation.jsonl, in the order of their names.
// A line that is not as it should be throws Error naming file and line; with skip_bad it is told
// about on standard error and left out.
std::vector<RulerLine> read_ruler(const std::filesystem::path& dir, bool skip_bad);

cli::Command add_ruler(CLI::App& eval, cli::Interrupts& interrupts);

}  // namespace ei::eval
