#include "ei/ops/save_queries.h"

#include "ei/ops/shapes.h"

namespace ei {

void check(const SaveQueries& op) {
  constexpr const char* kOp = "SaveQueries";
  for (const SaveQueries::Entry& entry : op.entries) {
    expect_at_least(kOp, "the window", entry.ring.rows, 1);
    expect_dim(kOp, "the width of a ring", entry.ring.cols, entry.q.cols);
    expect_dim(kOp, "the width of a query", entry.q.cols, op.entries[0].q.cols);
    expect_at_least(kOp, "a position", entry.position, 0);
  }
}

}  // namespace ei
