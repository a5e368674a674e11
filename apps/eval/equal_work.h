#pragma once

#include "apps/cli/command.h"

namespace ei::eval {

cli::Command add_equal_work(CLI::App& eval, cli::Interrupts& interrupts);

}  // namespace ei::eval
