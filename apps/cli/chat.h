#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "apps/cli/interrupt.h"
#include "ei/engine/engine.h"

namespace ei::cli {

// An interactive conversation on a terminal, until /exit or the end of input. `base` holds the
// policies, the sampling and messages that stand before the first question (a system prompt);
// `documents` are parts of the first question. Ctrl-C stops an answer, not the program. The
// conversation goes on from `saved`, if there is such a file, and is in it at the end; empty: not.
void chat(Engine& engine, const Request& base, std::vector<std::string> documents,
          const std::filesystem::path& saved, Interrupts& interrupts);

// Bytes that a conversation keeps of what it has read, beside the cache that it writes with: a
// tenth of the memory is left for all else.
int64_t kept_bytes(const Engine& engine);

}  // namespace ei::cli
