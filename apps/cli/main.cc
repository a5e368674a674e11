#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "apps/cli/command.h"
#include "apps/cli/environment.h"
#include "apps/cli/interrupt.h"
#include "apps/cli/lost_file.h"
#include "apps/cli/ranks.h"
#include "apps/cli/suggest.h"
#include "apps/cli/version.h"
#include "apps/eval/eval.h"
#include "apps/eval/perplexity.h"
#include "apps/eval/profile.h"
#include "apps/mpi/mpi.h"
#include "apps/server/serve.h"
#include "ei/base/fail.h"

namespace ei::cli {
namespace {

// Flags with their values and defaults alone: CLI11 would add each one's environment variable.
class Help : public CLI::Formatter {
  std::string make_option_opts(const CLI::Option* option) const override {
    return option->get_option_text().empty() ? "" : " " + option->get_option_text();
  }
};

// The subcommand that was called, of those that were called the innermost.
const CLI::App& called(const CLI::App& program) {
  const std::vector<CLI::App*> commands = program.get_subcommands();
  return commands.empty() ? program : called(*commands.front());
}

// What is wrong with arguments that nobody takes, and what was probably meant.
std::string unknown_arguments(const CLI::App& program, const CLI::App& command) {
  const std::vector<std::string> rest = program.remaining(/*recurse=*/true);
  if (rest.empty()) return {};
  const auto is_flag = [](const std::string& argument) { return argument.starts_with('-'); };
  const auto flag = std::ranges::find_if(rest, is_flag);
  std::vector<std::string> names;
  std::string what;
  if (flag == rest.end() && !command.get_subcommands({}).empty()) {
    what = fmt::format("{} is not a subcommand", rest.front());
    for (const CLI::App* sub : command.get_subcommands({})) names.push_back(sub->get_name());
  } else if (flag == rest.end()) {
    return fmt::format("{} is one argument too many", rest.front());
  } else {
    what = fmt::format("{} is not a flag of {}", *flag, command.get_name());
    for (const CLI::Option* option : command.get_options())
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  const std::string& typed = flag == rest.end() ? rest.front() : *flag;
  const std::string meant = nearest(typed.substr(0, typed.find('=')), names);
  return what + (meant.empty() ? "" : fmt::format("; did you mean {}?", meant));
}

int complain(const std::string& message, int exit_code) {
  std::fprintf(stderr, "entropyinfer: %s\n", message.c_str());
  return exit_code;
}

// Of what ends this rank, and so all of them.
int give_up(const std::string& message) {
  try {
    if (has_ranks()) ranks()->abort(message);
  } catch (const Error&) {  // they have ended already
  }
  return complain(message, kExitError);
}

// The first rank speaks for all.
void join_ranks() {
  set_ranks(mpi::ranks());
  if (!has_ranks() || ranks()->rank() == 0) return;
  for (std::FILE* file : {stdout, stderr})
    require(std::freopen("/dev/null", "w", file) != nullptr, "/dev/null: {}", std::strerror(errno));
}

int run(int argc, char** argv) {
  Interrupts interrupts;  // before anything that starts threads
  report_lost_files();
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
                                         add_pull(program),
                                         add_list(program),
                                         add_rm(program),
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
    join_ranks();
    program.parse(argc, argv);
    return run_parsed(commands);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return program.exit(error);  // --help, --version
    const CLI::App& command = called(program);
    const std::string unknown = unknown_arguments(program, command);
    const std::string message =
        unknown.empty() ? set_by_environment(command, error.what(), {argv, size_t(argc)}) : unknown;
    const std::string usage =
        message + "\nSee `entropyinfer --help` and `entropyinfer COMMAND --help`.";
    return has_ranks() ? give_up(usage) : complain(usage, kExitUsage);
  } catch (const std::bad_alloc&) {
    return give_up("not enough memory");
  } catch (const std::exception& error) {
    return give_up(error.what());
  }
}

}  // namespace
}  // namespace ei::cli

int main(int argc, char** argv) { return ei::cli::run(argc, argv); }
