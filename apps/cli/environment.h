#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace ei::cli {

// The environment variable that stands for a flag: --top-k is ENTROPYINFER_TOP_K.
std::string environment_name(const std::string& flag);

// Gives every flag of every subcommand its environment variable; the command line wins over it.
void add_environment(CLI::App& program);

}  // namespace ei::cli
