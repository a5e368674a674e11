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

}  // namespace ei::test
