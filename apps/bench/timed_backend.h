#pragma once

#include <chrono>
#include <map>
#include <string>

#include "ei/ops/backend.h"

namespace ei::bench {

// Another backend whose ops are timed. The times are right where ops are done when run() returns:
// on the CPU.
class TimedBackend final : public Backend {
 public:
  explicit TimedBackend(Backend& backend) : backend_(backend) {}

  // Seconds spent in each op, by its name.
  const std::map<std::string, double>& seconds() const { return seconds_; }
  void reset() { seconds_.clear(); }

  std::string name() const override { return backend_.name(); }
  int64_t act_bytes() const override { return backend_.act_bytes(); }
  int64_t prompt_rows() const override { return backend_.prompt_rows(); }
  int64_t available_bytes() const override { return backend_.available_bytes(); }
  Communicator& ranks() override { return backend_.ranks(); }
  void* allocate(int64_t bytes) override { return backend_.allocate(bytes); }
  void release(void* data, int64_t bytes) noexcept override { backend_.release(data, bytes); }
  void discard(void* data, int64_t bytes) noexcept override { backend_.discard(data, bytes); }
  void copy_in(void* device, const void* host, int64_t bytes) override {
    backend_.copy_in(device, host, bytes);
  }
  void copy_out(void* host, const void* device, int64_t bytes) override {
    backend_.copy_out(host, device, bytes);
  }
  Weight place(const Weight& host) override { return backend_.place(host); }
  Weight place_factor(const Weight& host) override { return backend_.place_factor(host); }

#define EI_TIMED_RUN(Op) \
  void run(const Op& op) override { timed(#Op, op); }
  EI_OPS(EI_TIMED_RUN)
#undef EI_TIMED_RUN

 private:
  template <class Op>
  void timed(const char* name, const Op& op) {
    const auto start = std::chrono::steady_clock::now();
    backend_.run(op);
    seconds_[name] +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  Backend& backend_;
  std::map<std::string, double> seconds_;
};

}  // namespace ei::bench
