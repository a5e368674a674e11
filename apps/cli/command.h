#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <vector>

namespace ei::cli {

class Interrupts;

// A subcommand: its options hang on `app`; run() does the work once they are parsed and returns the
// exit code. It throws Error (exit code 1) and CLI::ParseError (2).
struct Command {
  CLI::App* app;
  std::function<int()> run;
  bool on_ranks = false;  // several ranks can do it together
};

// Does what was parsed of `commands`; throws CLI::ValidationError where ranks cannot do it
// together.
int run_parsed(const std::vector<Command>& commands);

// Of a model that several GPUs share.
inline constexpr const char* kTensorParallel = "--tp";

inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

// One file each.
Command add_run(CLI::App& program, Interrupts& interrupts);
Command add_info(CLI::App& program);
Command add_tokenize(CLI::App& program);
Command add_score(CLI::App& program, Interrupts& interrupts);
Command add_demo(CLI::App& program);
Command add_pull(CLI::App& program);
Command add_list(CLI::App& program);
Command add_rm(CLI::App& program);
Command add_bench(CLI::App& program);

}  // namespace ei::cli
