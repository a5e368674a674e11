#include "apps/cli/version.h"

#include <fmt/format.h>

#include "apps/cli/environment.h"
#include "apps/cli/options.h"
#include "commit.h"
#include "ei/engine/make_backend.h"

#if defined(__clang__)
#define EI_COMPILER __VERSION__
#else
#define EI_COMPILER "GCC " __VERSION__
#endif

namespace ei::cli {

Build build() { return {EI_VERSION, EI_COMMIT, EI_COMPILER}; }

std::string version() {
  // The hardware that a command would get, whose flags the environment may set.
  CLI::App program;
  EngineOptions options;
  add_hardware(*program.add_subcommand("command"), options, "");
  add_environment(program);
  program.parse("command");
  return fmt::format("entropyinfer {} (commit {})\ncompiler: {}\ndevice: {}", EI_VERSION, EI_COMMIT,
                     EI_COMPILER, make_backend(options)->name());
}

}  // namespace ei::cli
