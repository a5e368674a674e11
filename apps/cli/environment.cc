#include "apps/cli/environment.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "apps/cli/ascii.h"

namespace ei::cli {

std::string environment_name(const std::string& flag) {
  std::string name = "ENTROPYINFER";
  for (const char c : "_" + flag.substr(flag.find_first_not_of('-')))
    name += c == '-' ? '_' : upper_case(c);
  return name;
}

void add_environment(CLI::App& program) {
  for (CLI::App* command : program.get_subcommands({})) {
    // Once the command is called, lest a variable that another command cannot take be looked at.
    command->preparse_callback([command](size_t) {
      for (CLI::Option* option : command->get_options())
        if (option != command->get_help_ptr() && !option->get_lnames().empty())
          option->envname(environment_name(option->get_lnames().front()));
    });
    add_environment(*command);
  }
}

std::string set_by_environment(const CLI::App& command, const std::string& error,
                               std::span<char*> arguments) {
  for (const CLI::Option* option : command.get_options()) {
    const std::string flag = option->get_name(), variable = option->get_envname();
    const bool typed = std::ranges::any_of(
        arguments, [&](std::string_view argument) { return argument.starts_with(flag); });
    const char* value = variable.empty() ? nullptr : std::getenv(variable.c_str());
    if (value != nullptr && !typed && error.find(flag) != error.npos)
      return fmt::format("{} ({}={} in the environment)", error, variable, value);
  }
  return error;
}

}  // namespace ei::cli
