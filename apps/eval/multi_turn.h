#pragma once

#include <vector>

#include "apps/cli/command.h"
#include "apps/eval/document.h"
#include "ei/engine/engine.h"

namespace ei::eval {

// A document and a question on each of its needles, one after another, with their right answers.
struct Conversation {
  struct Turn {
    int64_t n_prompt = 0;        // tokens up to where the answer begins
    int64_t begin = 0, end = 0;  // tokens of the answer that state the value
  };
  std::vector<int32_t> tokens;
  std::vector<Turn> turns;
};
// Throws Error when the model's chat format rewrites earlier turns.
Conversation make_conversation(const Engine& engine, const Document& document);

cli::Command add_multi_turn(CLI::App& eval, cli::Interrupts& interrupts);

}  // namespace ei::eval
