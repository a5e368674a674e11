#pragma once

#include <cstddef>
#include <vector>

#include "ei/base/communicator.h"
#include "ei/engine/batch.h"
#include "ei/engine/sequence.h"

namespace ei {

// How the scheduler of rank 0 leads the ranks that share its model: what it decides it tells them
// before it does it, and Scheduler::follow() does the same with their slices. Their sequences draw
// no tokens and end when they are told. Alone it tells nobody.
class Leader {
 public:
  explicit Leader(Communicator& ranks) : ranks_(ranks) {}
  ~Leader();  // sends home those that follow
  Leader(const Leader&) = delete;

  // A sequence that is to be read and written. Throws Error when another rank has no memory for it,
  // and no rank knows it then.
  void begin(const Sequence& sequence, const Request& request, const SequenceOptions& options);
  // Does the step on all ranks. Ends them all where they may no longer be in step: when a sequence
  // fails with anything but NothingLeft, on which they agree. Throws Error once the ranks have
  // ended.
  void execute(Batch& batch, const StepPlan& plan);
  // It is read and written no more.
  void end(const Sequence& sequence) noexcept;

 private:
  void tell(const std::vector<std::byte>& order) noexcept;

  Communicator& ranks_;
};

}  // namespace ei
