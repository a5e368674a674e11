#include "apps/server/workers.h"

#include <utility>

namespace ei::server {

Workers::Workers(int n_threads, size_t max_waiting) : max_waiting_(max_waiting) {
  for (int i = 0; i < n_threads; ++i)
    threads_.emplace_back([this](const std::stop_token& stop) { run(stop); });
}

Workers::~Workers() {
  for (auto& thread : threads_) thread.request_stop();
}

bool Workers::post(std::function<void()> job) {
  const std::lock_guard lock(mutex_);
  if (waiting_.size() >= max_waiting_) return false;
  waiting_.push_back(std::move(job));
  changed_.notify_one();
  return true;
}

void Workers::run(const std::stop_token& stop) {
  while (true) {
    std::function<void()> job;
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return !waiting_.empty(); }) || stop.stop_requested())
        return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    try {
      job();
    } catch (...) {
    }
  }
}

}  // namespace ei::server
