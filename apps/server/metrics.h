#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "ei/engine/scheduler.h"

namespace ei::server {

// Counts values into buckets whose upper bounds are given, as Prometheus does.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds)
      : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void observe(double value, int64_t n = 1);
  void print(const std::string& name, const std::string& help, const std::string& labels,
             std::string& out) const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;  // the last: above all bounds
  double sum_ = 0;
};

// What /metrics shows, in Prometheus' text format: vLLM's names under entropyinfer:, and how much
// the method saved. Any thread.
class Metrics {
 public:
  explicit Metrics(std::string model) : model_(std::move(model)) {}

  void http_reply(int status);
  void refused(const std::string& reason);
  void first_token(double s);
  void next_token(double s);  // since the one before
  // A request that ended: its outcome, when it came (seconds ago), and whether it was to be sparse.
  void ended(const Outcome& outcome, double e2e_s, const Request& request);

  std::string render(const SchedulerStats& stats) const;

 private:
  static std::vector<double> seconds();
  static std::vector<double> tokens();

  const std::string model_;
  mutable std::mutex mutex_;
  Histogram ttft_{seconds()}, itl_{seconds()}, e2e_{seconds()}, queue_{seconds()};
  Histogram prefill_{seconds()}, decode_{seconds()};
  Histogram prompt_tokens_{tokens()}, generation_tokens_{tokens()};
  Histogram density_{{0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1}};
  Histogram compression_{{0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1}};
  int64_t n_prompt_ = 0, n_cached_ = 0, n_generated_ = 0;
  int64_t n_compressed_ = 0;
  std::map<std::string, int64_t> finished_, refused_, dense_;  // by reason
  std::map<int, int64_t> replies_;                             // by status
};

}  // namespace ei::server
