#pragma once

#include <functional>
#include <memory>

#include "ei/base/communicator.h"

namespace ei::test {

// Ranks as threads of one process. Runs `rank` on n threads and returns once all have: when one of
// them throws, the others' next call throws Error, and what was thrown first is thrown here.
void run_ranks(int n, const std::function<void(const std::shared_ptr<Communicator>&)>& rank);

}  // namespace ei::test
