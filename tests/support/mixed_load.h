#pragma once

#include <future>
#include <string>
#include <vector>

#include "ei/engine/scheduler.h"
#include "tests/support/small_engine.h"

namespace ei::test {

// Prompts of several policies for a scheduler of a SmallEngine, two of them the same: chunks,
// segments that are found again, a copied cache, compressions and draws of every kind.
std::vector<Request> mixed_requests();

SchedulerOptions mixed_options(int64_t prefix_bytes);

// Submits them together and returns how they ended, in their order.
std::vector<Outcome> run_together(Scheduler& scheduler, const std::vector<Request>& requests);

// Expects that one at most of `got` ended with `error`, the others with the tokens wanted, and that
// an idle scheduler has given everything back but the prefix cache. Returns how many had the error.
int64_t expect_one_error_at_most(const Scheduler& scheduler, const std::vector<Outcome>& got,
                                 const std::vector<std::vector<int32_t>>& want,
                                 const std::string& error);

}  // namespace ei::test
