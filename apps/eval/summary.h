#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/eval/results.h"

namespace ei::eval {

// The mean of n scores between 0 and 1 and a 95% interval of what it estimates, by Wilson's formula
// for a proportion: wide for few samples and never empty, also where all scores are the same. It is
// on the safe side for scores between 0 and 1.
struct Interval {
  double mean = 0, low = 0, high = 1;
};
Interval interval(const std::vector<double>& scores);
Interval interval(double mean, double n);

// What one policy made of one task at one length; of all tasks when `task` is "all": the mean of
// the tasks' means, however many prompts each of them has.
struct Group {
  std::string task;
  int64_t length = 0;  // asked for; where prompts of all lengths are one group, their mean
  std::string policy;
  int64_t n = 0;
  Interval score;
  double density = 0, kv_bytes = 0, kv_bytes_full = 0, prefill_ms = 0, token_ms = 0;  // means
};
// In the order in which tasks, lengths and policies are first seen; per length the tasks, then all.
std::vector<Group> summarize(const std::vector<Result>& results);

// For people.
std::string table(const std::vector<Group>& groups);

// One page that needs nothing else: heat maps of depth and length, accuracy against KV bytes and
// against density, speed-up against length, the table. `about` heads it.
std::string html(const nlohmann::ordered_json& about, const std::vector<Result>& results);

}  // namespace ei::eval
