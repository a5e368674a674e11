#pragma once

#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "ei/ops/host_memory.h"

namespace ei::test {

// What a GPU's host memory could be at its slowest: nothing is copied before it has to be. Whatever
// is read too early, or written over too early, is seen.
class DeferredHostMemory final : public HostMemory {
 public:
  explicit DeferredHostMemory(std::function<void()> count) : count_(std::move(count)) {}

  int64_t memory = int64_t{1} << 30;  // that it says is available
  int64_t allocated_bytes = 0;        // now
  int64_t n_copies = 0;               // pieces asked for
  bool never_done = false;            // copied() is false as long as anything waits

  int64_t available_bytes() const override { return memory; }
  void* allocate(int64_t bytes) override {
    count_();
    allocated_bytes += bytes;
    return std::memset(::operator new(static_cast<size_t>(bytes)), 0xAA,
                       static_cast<size_t>(bytes));
  }
  void release(void* data, int64_t bytes) noexcept override {
    run();
    allocated_bytes -= bytes;
    ::operator delete(data);
  }
  void copy(std::span<void* const> to, std::span<const void* const> from, int64_t bytes) override {
    count_();
    for (size_t i = 0; i < to.size(); ++i) waiting_.push_back({to[i], from[i], bytes});
    n_copies += std::ssize(to);
  }
  bool copied() override {
    if (!never_done) run();
    return waiting_.empty();
  }
  void await() override { run(); }

 private:
  struct Copy {
    void* to;
    const void* from;
    int64_t bytes;
  };
  void run() {
    for (const Copy& copy : waiting_)
      std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
    waiting_.clear();
  }

  std::function<void()> count_;
  std::vector<Copy> waiting_;
};

}  // namespace ei::test
