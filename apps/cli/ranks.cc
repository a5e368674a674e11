#include "apps/cli/ranks.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "apps/cli/command.h"

namespace ei::cli {
namespace {

std::shared_ptr<Communicator>& shared() {
  static std::shared_ptr<Communicator> ranks;
  return ranks;
}

}  // namespace

const std::shared_ptr<Communicator>& ranks() { return shared(); }
void set_ranks(std::shared_ptr<Communicator> ranks) { shared() = std::move(ranks); }

int run_parsed(const std::vector<Command>& commands) {
  const auto command =
      std::ranges::find_if(commands, [](const Command& c) { return c.app->parsed(); });
  if (has_ranks() && !command->on_ranks)
    throw CLI::ValidationError(fmt::format(
        "{} is done by one process, not by {} ranks; start it without mpirun, or with -n 1",
        command->app->get_name(), ranks()->size()));
  const CLI::Option* tp = command->app->get_option_no_throw(kTensorParallel);
  if (tp != nullptr && tp->count() > 0 && tp->as<int>() > 1 && !command->on_ranks)
    throw CLI::ValidationError(fmt::format("{} is done by one rank; leave out {}",
                                           command->app->get_name(), kTensorParallel));
  return command->run();
}

std::string of_first_rank(std::string text) {
  if (!has_ranks()) return text;
  text.resize(of_first(*ranks(), text.size()));
  ranks()->broadcast(std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace ei::cli
