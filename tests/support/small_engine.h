#pragma once

#include "ei/engine/engine.h"
#include "tests/support/probed_backend.h"

namespace ei::test {

// An engine of two narrow random layers on one thread of the CPU, whose backend can be made to
// fail: so small that a test can run it a thousand times.
struct SmallEngine {
  SmallEngine();

  static constexpr int64_t kSegment = 16;
  // Read by entropy from the second segment on, eight tokens written from a full cache.
  static Request request(int64_t n_prompt, int32_t seed);

  // The same by sketches, in smaller segments.
  static PrefillPolicy sketch();

  Engine engine;
  ProbedBackend* backend;
};

// Of a window of four, to sixteen rows, once after so many tokens.
DecodePolicy small_decode(int64_t gap);

}  // namespace ei::test
