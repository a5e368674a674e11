#pragma once

#include "apps/cli/command.h"

namespace ei::cli {

Command add_profile(CLI::App& program, Interrupts& interrupts);

}  // namespace ei::cli
