#pragma once

#include <string>
#include <vector>

#include "apps/cli/interrupt.h"
#include "ei/engine/engine.h"

namespace ei::cli {

// An interactive conversation on a terminal, until /exit or the end of input. `base` holds the
// policies, the sampling and messages that stand before the first question (a system prompt);
// `documents` are parts of the first question. Ctrl-C stops an answer, not the program.
void chat(Engine& engine, const Request& base, std::vector<std::string> documents,
          Interrupts& interrupts);

}  // namespace ei::cli
