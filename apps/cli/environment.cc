#include "apps/cli/environment.h"

#include <cctype>

namespace ei::cli {

std::string environment_name(const std::string& flag) {
  std::string name = "ENTROPYINFER";
  for (const char c : "_" + flag.substr(flag.find_first_not_of('-')))
    name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

void add_environment(CLI::App& program) {
  for (CLI::App* command : program.get_subcommands({})) {
    for (CLI::Option* option : command->get_options())
      if (option != command->get_help_ptr() && !option->get_lnames().empty())
        option->envname(environment_name(option->get_lnames().front()));
    add_environment(*command);
  }
}

}  // namespace ei::cli
