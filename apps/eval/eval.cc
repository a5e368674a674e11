#include "apps/eval/eval.h"

#include <vector>

#include "apps/eval/equal_work.h"
#include "apps/eval/longbench.h"
#include "apps/eval/multi_turn.h"
#include "apps/eval/needle.h"
#include "apps/eval/ruler.h"

namespace ei::cli {

Command add_eval(CLI::App& program, Interrupts& interrupts) {
  CLI::App* command =
      program.add_subcommand("eval", "Compare policies: what they answer, and what they save");
  command->require_subcommand(1);
  const std::vector<Command> evaluations = {
      eval::add_needle(*command, interrupts), eval::add_ruler(*command, interrupts),
      eval::add_longbench(*command, interrupts), eval::add_multi_turn(*command, interrupts),
      eval::add_equal_work(*command, interrupts)};
  return {command, [evaluations] { return run_parsed(evaluations); }, /*on_ranks=*/true};
}

}  // namespace ei::cli
