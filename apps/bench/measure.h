#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "apps/bench/plan.h"
#include "ei/engine/engine.h"

namespace ei::bench {

// One row: work done in one way.
struct Row {
  Work work;
  Case how;
  std::vector<double> tokens_per_s;  // of every repetition
  double density = 1;                // attended pairs over those of dense attention
  int64_t kv_bytes = 0;              // held at the end
  int64_t peak_bytes = 0;            // of the whole process
};

// What is run next, and seconds left; < 0: not known yet.
using OnRun = std::function<void(const std::string& what, double seconds_left)>;

// Runs the plan, each group after a run of every case that is not counted. `tokens` are at least as
// many as the longest prompt.
std::vector<Row> measure(Engine& engine, std::span<const Group> plan, int64_t repetitions,
                         std::span<const int32_t> tokens, const OnRun& on_run);

// Tokens per second over those of the row that did the same work with dense attention, or with the
// full cache; 0 when there is none.
double ratio_to_dense(const Row& row, std::span<const Row> rows);

}  // namespace ei::bench
