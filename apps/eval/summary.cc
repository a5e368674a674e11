#include "apps/eval/summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "apps/cli/table.h"
#include "apps/cli/units.h"
#include "apps/eval/page.h"
#include "ei/io/json.h"

namespace ei::eval {
namespace {

template <class T>
void add_new(std::vector<T>& values, const T& value) {
  if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
}

Group group_of(const std::string& task, int64_t length, const std::string& policy,
               const std::vector<Result>& results) {
  Group group{.task = task, .length = length, .policy = policy};
  std::map<std::string, std::vector<double>> scores;  // of the tasks
  double prompt_tokens = 0;
  for (const Result& r : results) {
    if ((task != "all" && r.task != task) || r.length != length || r.policy != policy) continue;
    scores[r.task].push_back(r.score);
    ++group.n;
    prompt_tokens += double(r.prompt_tokens);
    group.density += r.density;
    group.kv_bytes += double(r.kv_bytes);
    group.kv_bytes_full += double(r.kv_bytes_full);
    group.prefill_ms += r.prefill_ms;
    group.token_ms += r.token_ms;
  }
  double mean = 0, unit_variance = 0;
  for (const auto& [name, own] : scores) {
    mean += interval(own).mean / double(scores.size());
    unit_variance += 1 / double(own.size());
  }
  // As many prompts as would give the same variance if all tasks had the same number.
  group.score = interval(mean, double(scores.size() * scores.size()) / unit_variance);
  if (length == 0 && group.n > 0) group.length = std::llround(prompt_tokens / double(group.n));
  for (double* sum :
       {&group.density, &group.kv_bytes, &group.kv_bytes_full, &group.prefill_ms, &group.token_ms})
    *sum /= double(std::max<int64_t>(1, group.n));
  return group;
}

}  // namespace

Interval interval(const std::vector<double>& scores) {
  if (scores.empty()) return {};
  const auto n = double(scores.size());
  return interval(std::accumulate(scores.begin(), scores.end(), 0.0) / n, n);
}

Interval interval(double p, double n) {
  constexpr double kZ = 1.959964;  // of 95%
  const double center = (p + kZ * kZ / (2 * n)) / (1 + kZ * kZ / n);
  const double half = kZ / (1 + kZ * kZ / n) * std::sqrt(p * (1 - p) / n + kZ * kZ / (4 * n * n));
  return {p, std::max(0.0, center - half), std::min(1.0, center + half)};
}

std::vector<Group> summarize(const std::vector<Result>& results) {
  std::vector<std::string> tasks, policies;
  std::vector<int64_t> lengths;
  for (const Result& r : results) {
    add_new(tasks, r.task);
    add_new(policies, r.policy);
    add_new(lengths, r.length);
  }
  if (tasks.size() > 1) tasks.push_back("all");
  std::vector<Group> groups;
  for (const int64_t length : lengths)
    for (const std::string& task : tasks)
      for (const std::string& policy : policies) {
        const Group group = group_of(task, length, policy, results);
        if (group.n > 0) groups.push_back(group);
      }
  return groups;
}

std::string table(const std::vector<Group>& groups) {
  cli::Table table({"policy", "task", "tokens", "score", "95% interval", "density", "KV", "of full",
                    "first token", "per token"});
  for (const Group& g : groups)
    table.add({g.policy, g.task, cli::grouped(g.length), fmt::format("{:.2f}", g.score.mean),
               fmt::format("{:.2f} to {:.2f}", g.score.low, g.score.high),
               fmt::format("{:.3f}", g.density), cli::human_bytes(static_cast<int64_t>(g.kv_bytes)),
               fmt::format("{:.0f}%", 100 * g.kv_bytes / g.kv_bytes_full),
               cli::human_ms(g.prefill_ms), cli::human_ms(g.token_ms)});
  return table.str();
}

std::string html(const OrderedJson& about, const std::vector<Result>& results) {
  OrderedJson groups = OrderedJson::array(), samples = OrderedJson::array();
  for (const Group& g : summarize(results))
    groups.push_back({{"task", g.task},
                      {"length", g.length},
                      {"policy", g.policy},
                      {"n", g.n},
                      {"mean", g.score.mean},
                      {"low", g.score.low},
                      {"high", g.score.high},
                      {"density", g.density},
                      {"kv_bytes", g.kv_bytes},
                      {"kv_bytes_full", g.kv_bytes_full},
                      {"prefill_ms", g.prefill_ms},
                      {"token_ms", g.token_ms}});
  for (const Result& r : results)
    if (r.depth >= 0)
      samples.push_back({{"length", r.length},
                         {"depth", r.depth},
                         {"policy", r.policy},
                         {"score", r.score},
                         {"task", r.task}});
  return fill_page(kReportPage, {{"about", about}, {"groups", groups}, {"samples", samples}});
}

}  // namespace ei::eval
