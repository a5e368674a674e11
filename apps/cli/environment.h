#pragma once

#include <CLI/CLI.hpp>
#include <span>
#include <string>

namespace ei::cli {

// The environment variable that stands for a flag: --top-k is ENTROPYINFER_TOP_K.
std::string environment_name(const std::string& flag);

// Gives every flag of every subcommand its environment variable; the command line wins over it.
void add_environment(CLI::App& program);

// An error in the use of `command`, which names a flag, with the variable that set this flag if the
// command line did not.
std::string set_by_environment(const CLI::App& command, const std::string& error,
                               std::span<char*> arguments);

}  // namespace ei::cli
