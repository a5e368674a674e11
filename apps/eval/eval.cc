#include "apps/eval/eval.h"

#include "apps/eval/needle.h"

namespace ei::cli {

Command add_eval(CLI::App& program, Interrupts& interrupts) {
  CLI::App* command =
      program.add_subcommand("eval", "Compare policies: what they answer, and what they save");
  command->require_subcommand(1);
  return {command, eval::add_needle(*command, interrupts).run};
}

}  // namespace ei::cli
