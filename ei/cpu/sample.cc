#include "ei/ops/sample.h"

#include <algorithm>
#include <cmath>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"

namespace ei::cpu {
namespace {

struct Candidate {
  float weight;  // e^((logit - highest) / temperature): its probability up to a constant
  int32_t id;
};

// Ties go to the lower id.
bool likelier(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}

// Every id once, however often it is in the history. `seen` has room for n_tokens bits.
void penalize(View<float, 1> logits, const Sample::Row& row, int64_t n_tokens, uint64_t* seen) {
  std::fill_n(seen, n_tokens / 64 + 1, 0);
  for (const int32_t id : row.history) {
    const uint64_t bit = uint64_t{1} << (id % 64);
    if (id >= n_tokens || (seen[id / 64] & bit) != 0) continue;
    seen[id / 64] |= bit;
    const float penalty = row.params.repetition_penalty;
    logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
  }
}

int32_t draw(View<const float, 1> logits, float highest, const Sample::Row& row, Candidate* begin) {
  const SamplingParams& params = row.params;
  Candidate* end = begin;
  for (int64_t id = 0; id < logits.dim(0); ++id) {
    const float weight = std::exp((logits[id] - highest) / params.temperature);
    *end++ = {weight, static_cast<int32_t>(id)};
  }
  if (params.top_k > 0 && params.top_k < end - begin) {
    std::nth_element(begin, begin + params.top_k, end, likelier);
    end = begin + params.top_k;
  }
  if (params.top_p < 1) {
    double total = 0, reached = 0;
    for (const Candidate* c = begin; c != end; ++c) total += c->weight;
    // The likeliest are few: taking them off a heap one by one beats sorting all.
    const auto unlikelier = [](const Candidate& a, const Candidate& b) { return likelier(b, a); };
    std::make_heap(begin, end, unlikelier);
    Candidate* rest = end;
    do {
      std::pop_heap(begin, rest--, unlikelier);
      reached += rest->weight;
    } while (rest != begin && reached < params.top_p * total);
    end = std::copy(rest, end, begin);
  }
  if (params.min_p > 0)  // the likeliest weighs 1
    end = std::remove_if(begin, end, [&](const Candidate& c) { return c.weight < params.min_p; });

  std::sort(begin, end, [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  double total = 0;
  for (const Candidate* c = begin; c != end; ++c) total += c->weight;
  double left = uniform(params.seed, row.step) * total;
  for (const Candidate* c = begin; c != end; ++c)
    if ((left -= c->weight) < 0) return c->id;
  return end[-1].id;
}

}  // namespace

void CpuBackend::run(const Sample& op) {
  check(op);
  const View<float, 2> logits = rows_of(op.logits);
  for (int64_t i = 0; i < op.logits.rows; ++i) {
    const Sample::Row& row = op.rows[static_cast<size_t>(i)];
    const View<float, 1> eligible = logits[i].slice(0, op.n_tokens);
    if (row.params.repetition_penalty != 1)
      penalize(eligible, row, op.n_tokens, scratch_.get<uint64_t>(op.n_tokens / 64 + 1));
    const float* top = std::max_element(eligible.begin(), eligible.end());
    op.token[i] = row.params.temperature == 0
                      ? static_cast<int32_t>(top - eligible.begin())
                      : draw(eligible, *top, row, scratch_.get<Candidate>(op.n_tokens));
  }
}

}  // namespace ei::cpu
