#include "apps/bench/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "apps/bench/machine.h"
#include "apps/bench/statistics.h"

namespace ei::bench {
namespace {

// Enough to run every kernel a case needs, and to measure a model's keys: on a GPU `entropy`
// selects from token 8,192 on, and a prompt's last 512 tokens are dense.
constexpr int64_t kWarmUpTokens = 9216;

// A session of its own: nothing is known of the prompt.
Generation run_once(Engine& engine, const Work& work, const Case& how, int64_t n_prompt,
                    std::span<const int32_t> tokens) {
  Session session(engine);
  Request request;
  request.tokens.assign(tokens.begin(), tokens.begin() + n_prompt);
  request.prefill = how.prefill;
  request.decode = how.decode;
  request.sampling = SamplingParams{};
  request.max_tokens = work.answer_tokens();
  request.ignore_eos = true;
  return session.generate(request);
}

std::string describe(const Work& work, const Case& how) {
  return fmt::format("{}, {}", work.name(),
                     work.kind == Work::Kind::kRead ? how.prefill_name : how.decode_name);
}

double total_cost(std::span<const Group> plan, int64_t repetitions) {
  double cost = 0;
  for (const Group& group : plan)
    for (const Case& how : group.cases) cost += double(repetitions) * rough_cost(group.work, how);
  return cost;
}

}  // namespace

std::vector<Row> measure(Engine& engine, std::span<const Group> plan, int64_t repetitions,
                         std::span<const int32_t> tokens, const OnRun& on_run) {
  using Clock = std::chrono::steady_clock;
  const double cost = total_cost(plan, repetitions);
  double done = 0, seconds = 0;
  std::vector<Row> rows;
  for (const Group& group : plan) {
    const Work& work = group.work;
    const size_t first = rows.size();
    for (const Case& how : group.cases) {
      on_run(describe(work, how) + ", warm-up", done > 0 ? (cost - done) * seconds / done : -1);
      run_once(engine, work, how, std::min(work.prompt_tokens(), kWarmUpTokens), tokens);
      rows.push_back({.work = work, .how = how, .tokens_per_s = {}});
    }
    for (int64_t r = 0; r < repetitions; ++r) {
      for (size_t i = first; i < rows.size(); ++i) {
        Row& row = rows[i];
        on_run(fmt::format("{}, run {} of {}", describe(work, row.how), r + 1, repetitions),
               done > 0 ? (cost - done) * seconds / done : -1);
        reset_peak_memory();
        const auto start = Clock::now();
        const Generation g = run_once(engine, work, row.how, work.prompt_tokens(), tokens);
        seconds += std::chrono::duration<double>(Clock::now() - start).count();
        done += rough_cost(work, row.how);
        row.tokens_per_s.push_back(work.kind == Work::Kind::kRead ? g.timings.prefill_tps
                                                                  : g.timings.decode_tps);
        row.density = g.sparsity.density;
        row.kv_bytes = g.kv.bytes;
        row.peak_bytes = std::max(row.peak_bytes, peak_memory());
      }
    }
  }
  return rows;
}

double ratio_to_dense(const Row& row, std::span<const Row> rows) {
  for (const Row& other : rows) {
    if (other.work.name() != row.work.name()) continue;
    const bool dense = row.work.kind == Work::Kind::kRead ? other.how.prefill.is_dense()
                                                          : other.how.decode.is_full();
    const double base = mean(other.tokens_per_s);
    if (dense && base > 0) return mean(row.tokens_per_s) / base;
  }
  return 0;
}

}  // namespace ei::bench
