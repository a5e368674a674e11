#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "apps/cli/command.h"
#include "apps/cli/environment.h"
#include "apps/cli/interrupt.h"
#include "apps/cli/version.h"
#include "apps/eval/eval.h"
#include "apps/eval/perplexity.h"
#include "apps/eval/profile.h"
#include "apps/server/serve.h"
#include "ei/base/error.h"

namespace ei::cli {
namespace {

// Flags with their values and defaults alone: CLI11 would add each one's environment variable.
class Help : public CLI::Formatter {
  std::string make_option_opts(const CLI::Option* option) const override {
    return option->get_option_text().empty() ? "" : " " + option->get_option_text();
  }
};

int complain(const std::string& message, int exit_code) {
  std::fprintf(stderr, "entropyinfer: %s\n", message.c_str());
  return exit_code;
}

int run(int argc, char** argv) {
  Interrupts interrupts;  // before anything that starts threads
  CLI::App program(
      "Long-context LLM inference that spends attention where entropy says it matters.",
      "entropyinfer");
  program.formatter(std::make_shared<Help>());
  program.require_subcommand(1);
  program.set_version_flag("--version", version, "Commit, compiler and instruction set");
  program.footer(
      "Each flag has an environment variable: --top-k 5 is ENTROPYINFER_TOP_K=5.\n"
      "Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted.");
  const std::vector<Command> commands = {add_run(program, interrupts),
                                         add_info(program),
                                         add_tokenize(program),
                                         add_score(program, interrupts),
                                         add_demo(program),
                                         add_bench(program),
                                         add_serve(program, interrupts),
                                         add_eval(program, interrupts),
                                         add_perplexity(program, interrupts),
                                         add_profile(program, interrupts)};
  add_environment(program);

  try {
    program.parse(argc, argv);
    for (const Command& command : commands)
      if (command.app->parsed()) return command.run();
    return kExitUsage;  // not reached: a subcommand is required
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return program.exit(error);  // --help, --version
    return complain(std::string(error.what()) +
                        "\nSee `entropyinfer --help` and `entropyinfer COMMAND --help`.",
                    kExitUsage);
  } catch (const std::bad_alloc&) {
    return complain("not enough memory", kExitError);
  } catch (const std::exception& error) {
    return complain(error.what(), kExitError);
  }
}

}  // namespace
}  // namespace ei::cli

int main(int argc, char** argv) { return ei::cli::run(argc, argv); }
