#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>

#include "ei/base/fail.h"
#include "ei/ops/backend.h"
#include "tests/support/deferred_host_memory.h"

namespace ei::test {

// Another backend that is watched, and made to fail.
class ProbedBackend final : public Backend {
 public:
  explicit ProbedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  static constexpr const char kFailure[] = "this call was to fail";

  int64_t allocated_bytes = 0;  // now
  int64_t n_copies = 0;         // either way
  int64_t n_tokens = 0;         // embedded, of prompts and answers
  int64_t memory = INT64_MAX;   // what it says is available, if it is less than there is
  // Of allocate, copies and ops: the one after them throws Error. Set from other threads as well.
  std::atomic<int64_t> calls_left = INT64_MAX;
  std::function<void()> on_call;  // after each of them
  // Memory of a host beside this one, if it is to have any; its allocations and copies count.
  DeferredHostMemory host{[this] { count(); }};
  bool has_host = false;

  std::string name() const override { return inner_->name(); }
  int64_t act_bytes() const override { return inner_->act_bytes(); }
  int64_t prompt_rows() const override { return inner_->prompt_rows(); }
  int64_t available_bytes() const override { return std::min(memory, inner_->available_bytes()); }
  Communicator& ranks() override { return inner_->ranks(); }
  HostMemory* host_memory() override { return has_host ? &host : inner_->host_memory(); }
  void* allocate(int64_t bytes) override {
    count();
    void* data = inner_->allocate(bytes);
    allocated_bytes += bytes;
    if (on_call) on_call();
    return data;
  }
  void release(void* data, int64_t bytes) noexcept override {
    allocated_bytes -= bytes;
    inner_->release(data, bytes);
  }
  void discard(void* data, int64_t bytes) noexcept override { inner_->discard(data, bytes); }
  void copy_in(void* device, const void* host, int64_t bytes) override {
    count();
    ++n_copies;
    inner_->copy_in(device, host, bytes);
  }
  void copy_out(void* host, const void* device, int64_t bytes) override {
    count();
    ++n_copies;
    inner_->copy_out(host, device, bytes);
  }
  Weight place(const Weight& host) override { return inner_->place(host); }
  Weight place_factor(const Weight& host) override { return inner_->place_factor(host); }

#define EI_PROBED_RUN(Op)           \
  void run(const Op& op) override { \
    count();                        \
    look_at(op);                    \
    inner_->run(op);                \
    if (on_call) on_call();         \
  }
  EI_OPS(EI_PROBED_RUN)
#undef EI_PROBED_RUN

 private:
  void count() { require(calls_left-- != 0, kFailure); }
  template <class Op>
  void look_at(const Op&) {}
  void look_at(const Embed& op) { n_tokens += op.tokens.dim(0); }

  std::unique_ptr<Backend> inner_;
};

}  // namespace ei::test
