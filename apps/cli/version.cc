#include "apps/cli/version.h"

#include <fmt/format.h>

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
  return fmt::format("entropyinfer {} (commit {})\ncompiler: {}\ndevice: {}", EI_VERSION, EI_COMMIT,
                     EI_COMPILER, make_backend({})->name());
}

}  // namespace ei::cli
