#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "ei/base/fail.h"
#include "ei/jinja/template.h"

namespace ei::jinja {

// Counts what a rendering costs and throws Error at its limits. It outlives all values made.
class Meter {
 public:
  explicit Meter(const Limits& limits) : limits_(limits) {}
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  void step(int64_t n = 1) {
    steps_ += n;
    if (steps_ > limits_.max_steps)
      fail("the template takes more than {} steps", limits_.max_steps);
  }

  // For handling bytes or items in bulk, made or merely looked at.
  void work(size_t bytes) { step(1 + static_cast<int64_t>(bytes / 64)); }

  void take(size_t bytes) {
    if (bytes > static_cast<size_t>(limits_.max_memory_bytes - memory_bytes_))
      fail("the template needs more than {} bytes of memory", limits_.max_memory_bytes);
    memory_bytes_ += static_cast<int64_t>(bytes);
  }
  void give(size_t bytes) { memory_bytes_ -= static_cast<int64_t>(bytes); }

  void enter() {
    if (depth_ >= limits_.max_depth)
      fail("the template nests or recurses deeper than {} levels", limits_.max_depth);
    ++depth_;
  }
  void leave() { --depth_; }

  const Limits& limits() const { return limits_; }

 private:
  const Limits limits_;
  int64_t steps_ = 0;
  int64_t memory_bytes_ = 0;
  int64_t depth_ = 0;
};

// One more level of recursion, while it lives.
class Level {
 public:
  explicit Level(Meter& meter) : meter_(meter) { meter_.enter(); }
  ~Level() { meter_.leave(); }
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;

 private:
  Meter& meter_;
};

// Memory that a value, or one being built, has taken from the meter. Moves with it. Constants of a
// template belong to no rendering and have none.
class Charge {
 public:
  Charge() = default;
  explicit Charge(Meter& meter) : meter_(&meter) {}
  Charge(Charge&& other) noexcept
      : meter_(std::exchange(other.meter_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Charge& operator=(Charge&& other) noexcept {
    std::swap(meter_, other.meter_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Charge() {
    if (meter_ != nullptr) meter_->give(bytes_);
  }

  // Before the memory is allocated. Making bytes is also work.
  void add(size_t bytes) {
    if (meter_ == nullptr) return;
    meter_->work(bytes);
    meter_->take(bytes);
    bytes_ += bytes;
  }

 private:
  Meter* meter_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace ei::jinja
