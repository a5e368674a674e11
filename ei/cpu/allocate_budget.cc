#include "ei/ops/allocate_budget.h"

#include <algorithm>

#include "ei/base/communicator.h"
#include "ei/cpu/cpu_backend.h"

namespace ei::cpu {
namespace {

// Every budget [n_kv_heads, n_segments] to the highest of its segment among all ranks' heads.
void raise_to_highest(const View<float, 2>& budgets, Communicator& ranks) {
  const auto n = static_cast<size_t>(budgets.dim(1));
  std::vector<float> own(n, 0.0f), all(n * static_cast<size_t>(ranks.size()));
  for (int64_t h = 0; h < budgets.dim(0); ++h)
    for (size_t i = 0; i < n; ++i) own[i] = std::max(own[i], budgets[h][int64_t(i)]);
  ranks.gather(std::as_bytes(std::span(own)), std::as_writable_bytes(std::span(all)));
  for (size_t i = 0; i < all.size(); ++i) own[i % n] = std::max(own[i % n], all[i]);
  for (int64_t h = 0; h < budgets.dim(0); ++h) std::ranges::copy(own, budgets[h].begin());
}

}  // namespace

// A few hundred steps a head: not worth a second thread.
void CpuBackend::run(const AllocateBudget& op) {
  check(op);
  const int64_t n_heads = op.blocks.dim(0), n_segments = op.blocks.dim(1);
  const int64_t end = op.first_segment + n_segments;
  for (int64_t h = 0; h < n_heads; ++h) {
    const auto entropy = [&](int64_t s) { return op.entropy[s][op.layer][h]; };
    bool rigid = true;
    for (int64_t s = 1; s < end; ++s) rigid &= entropy(s) < op.rule.e_t;
    BudgetRecurrence recurrence(op.rule);
    for (int64_t s = 0; s < end; ++s) {
      const float budget = s == 0 ? op.rule.base : recurrence.step(s, entropy(s), rigid);
      if (s >= op.first_segment) op.tokens[h][s - op.first_segment] = budget;
    }
  }
  if (op.rule.max_over_heads) raise_to_highest(op.tokens, *ranks_);
  for (int64_t i = 0; i < n_segments; ++i) {
    const int64_t s = op.first_segment + i;
    for (int64_t h = 0; h < n_heads; ++h) {
      const float tokens = op.tokens[h][i];
      const int64_t wanted = tokens > 0 ? static_cast<int64_t>(tokens) / op.block : 0;  // NaN is 0
      const bool dense = s < op.dense_before || s >= op.dense_from;
      op.blocks[h][i] =
          dense ? kAllBlocks : static_cast<int32_t>(std::min(wanted, s * op.segment / op.block));
    }
  }
}

}  // namespace ei::cpu
