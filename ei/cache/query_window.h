#pragma once

#include <algorithm>
#include <vector>

#include "ei/ops/backend.h"
#include "ei/ops/buffer.h"

namespace ei {

// The newest queries of every layer of one sequence: the window whose attention decides what a
// compression keeps (METHOD.md 2.1). A ring: the query of position p is row p % n_rows().
class QueryWindow {
 public:
  // n_rows 0: nothing is remembered.
  QueryWindow(Backend& backend, int64_t n_layers, int64_t n_rows, int64_t width)
      : backend_(&backend), n_rows_(n_rows), width_(width) {
    for (int64_t l = 0; n_rows > 0 && l < n_layers; ++l)
      rings_.emplace_back(backend, n_rows * width * backend.act_bytes());
  }

  int64_t n_rows() const { return n_rows_; }
  Act ring(int layer) const {
    return {rings_[static_cast<size_t>(layer)].data(), n_rows_, width_, backend_->act_bytes()};
  }

  // q [n, n_heads * d] of positions begin, begin + 1, ...
  void save(int layer, const Act& q, int64_t begin) {
    if (n_rows_ == 0) return;
    const SaveQueries::Entry entry = {q, begin, ring(layer)};
    backend_->run(SaveQueries{{&entry, 1}});
  }

  // The newest of another sequence's queries, of a window no smaller, after its first n tokens.
  void copy(const QueryWindow& from, int64_t n) {
    for (int l = 0; l < static_cast<int>(rings_.size()); ++l) {
      for (int64_t p = std::max<int64_t>(0, n - n_rows_), end = 0; p < n; p = end) {
        end = std::min(n, p + from.n_rows_ - p % from.n_rows_);
        save(l, from.ring(l).slice(p % from.n_rows_, end - p), p);
      }
    }
  }

 private:
  Backend* backend_;
  int64_t n_rows_;
  int64_t width_;
  std::vector<Buffer> rings_;
};

}  // namespace ei
