#pragma once

#include "apps/cli/command.h"

namespace ei::eval {

cli::Command add_needle(CLI::App& eval, cli::Interrupts& interrupts);

}  // namespace ei::eval
