#pragma once

#include <functional>
#include <memory>

#include "ei/base/communicator.h"

namespace ei {

// Ranks as threads of one process. Once one of them has given up, or has kept the others waiting
// beyond their Patience, the ranks have ended: every call of every rank throws Error with why, now
// and later.
class ThreadRanks {
 public:
  using Work = std::function<void(const std::shared_ptr<Communicator>&)>;

  // `on_end`: told why the ranks have ended, once, by the thread that sees it.
  explicit ThreadRanks(int n, std::function<void(const std::string&)> on_end = {});

  // One run at a time: does `work` for every rank from `first` on, each in a thread of its own but
  // for rank 0, whose is done here, and returns once all have. Throws what rank 0 has thrown, else
  // Error naming the rank that was first to throw. What all of them throw alike leaves the ranks as
  // they are; when only some throw, whoever waits for those throws as well, and the ranks have
  // ended.
  void run(const Work& work, int first = 0);

 private:
  class Rank;
  struct Meeting;
  std::shared_ptr<Meeting> meeting_;
  std::vector<std::shared_ptr<Communicator>> ranks_;
};

}  // namespace ei
