#include "tests/support/mixed_load.h"

#include <gtest/gtest.h>

namespace ei::test {

std::vector<Request> mixed_requests() {
  Request latent = SmallEngine::request(70, 1);
  latent.decode = small_decode(2);
  latent.sampling = SamplingParams{.temperature = 1, .repetition_penalty = 1.2f, .seed = 5};
  Request same = latent;
  same.decode = DecodePolicy::full();
  same.sampling->seed = 6;
  Request snapkv = SmallEngine::request(45, 2);
  snapkv.prefill = SmallEngine::sketch();
  snapkv.decode = small_decode(-1);
  Request dense = SmallEngine::request(33, 3);
  dense.prefill.threshold_len = PrefillPolicy::dense().threshold_len;
  return {latent, same, snapkv, dense};
}

SchedulerOptions mixed_options(int64_t prefix_bytes) {
  SchedulerOptions options;
  options.prefill = SmallEngine::request(1, 0).prefill;
  options.max_sequences = 4;
  options.kv_bytes = int64_t{64} << 20;
  options.prefix_bytes = prefix_bytes;
  options.step_interval = {};  // decode steps between all layers
  return options;
}

std::vector<Outcome> run_together(Scheduler& scheduler, const std::vector<Request>& requests) {
  std::vector<std::promise<Outcome>> promises(requests.size());
  std::vector<Job> jobs(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    jobs[i].request = requests[i];
    jobs[i].on_end = [promise = &promises[i]](Outcome outcome) {
      promise->set_value(std::move(outcome));
    };
  }
  scheduler.submit(std::move(jobs));
  std::vector<Outcome> outcomes;
  for (std::promise<Outcome>& promise : promises) outcomes.push_back(promise.get_future().get());
  scheduler.wait_idle(std::chrono::steady_clock::time_point::max());
  return outcomes;
}

int64_t expect_one_error_at_most(const Scheduler& scheduler, const std::vector<Outcome>& got,
                                 const std::vector<std::vector<int32_t>>& want,
                                 const std::string& error) {
  int64_t n_errors = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i].error) {
      EXPECT_EQ(*got[i].error, error);
      ++n_errors;
    } else {
      EXPECT_EQ(got[i].generation.tokens, want[i]) << i;
    }
  }
  EXPECT_LE(n_errors, 1);
  EXPECT_EQ(scheduler.stats().kv_bytes_planned, 0);
  EXPECT_LE(scheduler.stats().kv_bytes_used, scheduler.stats().prefix_bytes);
  return n_errors;
}

}  // namespace ei::test
