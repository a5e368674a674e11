#pragma once

#include <memory>
#include <vector>

#include "ei/base/math.h"
#include "ei/ops/backend.h"

namespace ei {

// The backend that everybody has. Activations are float; SIMD instructions are chosen at run time.
// Results do not depend on n_threads (0: one for each of `cpus`, or of those that the process has).
// With Math::kBF16, what goes into products of many rows and into prefill attention is rounded to
// bf16 where the processor has a unit for it. `ranks` share the model; null: nobody does. Threads
// are pinned to `cpus` in that order within Backend::pinned(), to none if there are none; throws
// Error if they are fewer than threads.
std::unique_ptr<Backend> make_cpu_backend(int n_threads = 0, Math math = Math::kBF16,
                                          std::shared_ptr<Communicator> ranks = nullptr,
                                          std::vector<int> cpus = {});

}  // namespace ei
