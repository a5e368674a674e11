#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ei::server {

// A few threads for what takes longer than an I/O thread may: reading requests, writing answers.
class Workers {
 public:
  Workers(int n_threads, size_t max_waiting);
  ~Workers();  // what waits is dropped

  // Runs `job` when it is its turn; false: so much waits already. What it throws is lost.
  bool post(std::function<void()> job);

 private:
  void run(const std::stop_token& stop);

  const size_t max_waiting_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<std::function<void()>> waiting_;
  std::vector<std::jthread> threads_;  // last: they end before the rest goes
};

}  // namespace ei::server
