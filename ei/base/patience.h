#pragma once

#include <atomic>
#include <chrono>
#include <optional>

namespace ei {

// How long a rank waits for the others before it takes one of them for dead. Between two waits all
// do the same work: so eight seconds, and several times what its own work took. Before the first
// they load, which may take one much longer than another: there is no limit to that.
class Patience {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::seconds kLeast{8};

  // From one to the other the rank waits.
  void begin() {
    const auto now = Clock::now();
    if (ended_) limit_ = now + kLeast + 4 * (now - *ended_);
  }
  void end() {
    ended_ = Clock::now();
    limit_ = Clock::time_point::max();
  }
  // While it waits, whether it has for too long. Any thread.
  bool over() const { return Clock::now() > limit_.load(); }

 private:
  std::optional<Clock::time_point> ended_;
  std::atomic<Clock::time_point> limit_ = Clock::time_point::max();
};

}  // namespace ei
