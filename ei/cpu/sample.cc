#include "ei/ops/sample.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <span>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/sample.cc"
#include <hwy/foreach_target.h>

#include "hwy/contrib/math/math-inl.h"

#ifndef EI_CPU_SAMPLE_ONCE_
#define EI_CPU_SAMPLE_ONCE_
namespace ei::cpu {

struct Highest {
  float value;
  bool all_finite;
};

}  // namespace ei::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using V32 = hn::Vec<F32>;

// The highest of n numbers.
Highest highest_of(const float* x, int64_t n) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  V32 most = hn::Set(d, -std::numeric_limits<float>::infinity()), zeros = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const V32 v = hn::LoadU(d, x + i);
    most = hn::Max(most, v);
    zeros = hn::MulAdd(v, hn::Zero(d), zeros);  // NaN from the first that is not finite
  }
  float highest = hn::GetLane(hn::MaxOfLanes(d, most)),
        zero = hn::GetLane(hn::SumOfLanes(d, zeros));
  for (; i < n; ++i) {
    highest = std::max(highest, x[i]);
    zero += x[i] * 0;
  }
  return {highest, zero == 0};
}

// The numbers of which bit i % 32 of word i / 32 is set, the others as -infinity; returns the
// highest. `out` may be `x`.
float only_allowed(const float* x, int64_t n, const uint32_t* allowed, float* out) {
  const hn::CappedTag<float, 32> d;
  const hn::RebindToUnsigned<decltype(d)> bits;
  constexpr float kBanned = -std::numeric_limits<float>::infinity();
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto own_bit = hn::Shl(hn::Set(bits, 1), hn::Iota(bits, 0));
  auto most = hn::Set(d, kBanned);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto word = hn::Set(bits, allowed[i / 32] >> (i % 32));
    const auto stays = hn::RebindMask(d, hn::TestBit(word, own_bit));
    const auto v = hn::IfThenElse(stays, hn::LoadU(d, x + i), hn::Set(d, kBanned));
    most = hn::Max(most, v);
    hn::StoreU(v, d, out + i);
  }
  float highest = hn::GetLane(hn::MaxOfLanes(d, most));
  for (; i < n; ++i) {
    out[i] = (allowed[i / 32] >> (i % 32) & 1) != 0 ? x[i] : kBanned;
    highest = std::max(highest, out[i]);
  }
  return highest;
}

// e^((x - highest) / temperature).
void weigh_all(const float* x, int64_t n, float highest, float temperature, float* weights) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto weigh = [&](V32 v) {
    return hn::Exp(d, hn::Div(hn::Sub(v, hn::Set(d, highest)), hn::Set(d, temperature)));
  };
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(weigh(hn::LoadU(d, x + i)), d, weights + i);
  if (i == n) return;
  float last[hn::MaxLanes(F32())] = {};
  std::copy(x + i, x + n, last);
  hn::StoreU(weigh(hn::LoadU(d, last)), d, last);
  std::copy_n(last, n - i, weights + i);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(highest_of);
HWY_EXPORT(only_allowed);
HWY_EXPORT(weigh_all);

struct Candidate {
  float weight;  // its probability up to a constant; that of the likeliest is 1
  int32_t id;
};

// Ties go to the lower id.
bool likelier(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}

// What a thread needs for a row.
struct Room {
  float* values;      // [n_tokens] logits that were changed, then weights
  uint32_t* counts;   // [n_tokens]
  Candidate* sorted;  // [n_tokens]
};

struct Amount {
  double count = 0, mass = 0;

  void operator+=(const Amount& other) { count += other.count, mass += other.mass; }
};

// Weights from 0 to 1 by their exponent and three bits more, so that only the tokens around a limit
// need be sorted.
constexpr int kBinShift = 20;
constexpr size_t kBins = (std::bit_cast<uint32_t>(1.0f) >> kBinShift) + 1;
using Bins = std::array<Amount, kBins>;

size_t bin_of(float weight) { return std::bit_cast<uint32_t>(weight) >> kBinShift; }

// The token at which the counts or masses, added up from the likeliest on, reach `wanted`, and what
// they are then.
std::pair<Candidate, Amount> find_last(std::span<const float> weights, const Bins& bins,
                                       double Amount::*what, double wanted, Candidate* sorted) {
  Amount sum;
  size_t bin = kBins - 1;
  while (bin > 0 && sum.*what + bins[bin].*what < wanted) sum += bins[bin--];
  // All that is left weighs nothing, as what may not come does: none of it is sorted.
  if (bin == 0) return {{0, std::numeric_limits<int32_t>::max()}, sum};
  Candidate* end = sorted;
  for (size_t id = 0; id < weights.size(); ++id)
    if (bin_of(weights[id]) == bin) *end++ = {weights[id], static_cast<int32_t>(id)};
  std::sort(sorted, end, likelier);
  Candidate* last = sorted;
  sum += {1, last->weight};
  while (sum.*what < wanted && last + 1 < end) sum += {1, (++last)->weight};
  return {*last, sum};
}

void apply_biases_and_penalties(std::span<float> logits, const Sample::Row& row, uint32_t* counts) {
  const auto known = [&](int32_t id) { return static_cast<uint32_t>(id) < logits.size(); };
  for (const LogitBias& b : row.biases)
    if (known(b.token)) logits[static_cast<size_t>(b.token)] += b.bias;
  if (!row.params.has_penalties() || row.history.size() == 0) return;
  constexpr uint32_t kInPrompt = 1u << 31;
  std::fill_n(counts, logits.size(), 0);
  const auto prompt = row.history.slice(0, row.n_prompt);
  const auto drawn = row.history.slice(row.n_prompt, row.step);
  for (const int32_t id : prompt)
    if (known(id)) counts[id] |= kInPrompt;
  for (const int32_t id : drawn)
    if (known(id)) ++counts[id];
  for (size_t id = 0; id < logits.size(); ++id)
    if (counts[id] != 0)
      logits[id] = penalized(logits[id], row.params, static_cast<int32_t>(counts[id] & ~kInPrompt));
}

int32_t draw(std::span<float> weights, const SamplingParams& params, uint64_t step,
             Candidate* sorted) {
  const auto n = static_cast<double>(weights.size());
  const bool limited = params.top_k > 0 && params.top_k < n;
  Candidate last = {0, INT32_MAX};  // of those that stay
  if (limited || params.top_p < 1) {
    Bins bins{};
    for (const float weight : weights) bins[bin_of(weight)] += {1, weight};
    Amount all;
    for (size_t bin = kBins; bin-- > 0;) all += bins[bin];
    if (limited)
      std::tie(last, all) = find_last(weights, bins, &Amount::count, params.top_k, sorted);
    if (params.top_p < 1)
      last = find_last(weights, bins, &Amount::mass, params.top_p * all.mass, sorted).first;
  }
  double total = 0;
  for (size_t id = 0; id < weights.size(); ++id) {
    float& weight = weights[id];
    if (weight < params.min_p || likelier(last, {weight, static_cast<int32_t>(id)})) weight = 0;
    total += weight;
  }
  double left = uniform(params.seed, step) * total;
  int32_t token = 0;
  for (size_t id = 0; id < weights.size(); ++id) {
    token = weights[id] != 0 ? static_cast<int32_t>(id) : token;
    if ((left -= weights[id]) < 0) break;
  }
  return token;
}

int32_t sample(std::span<const float> logits, const Sample::Row& row, const Room& room) {
  const auto n = std::ssize(logits);
  auto [highest, all_finite] = HWY_DYNAMIC_DISPATCH(highest_of)(logits.data(), n);
  if (!all_finite) return Sample::kNotFinite;
  const std::span<float> values(room.values, logits.size());
  if (row.biases.size() > 0 || row.params.has_penalties()) {
    std::copy(logits.begin(), logits.end(), values.begin());
    apply_biases_and_penalties(values, row, room.counts);
    logits = values;
    highest = HWY_DYNAMIC_DISPATCH(highest_of)(logits.data(), n).value;
  }
  if (row.allowed.size() > 0) {
    highest = HWY_DYNAMIC_DISPATCH(only_allowed)(logits.data(), n, row.allowed.data, values.data());
    logits = values;
  }
  if (highest == -INFINITY) return Sample::kNoneLeft;
  if (!std::isfinite(highest)) return Sample::kNotFinite;
  if (row.params.temperature == 0)
    return static_cast<int32_t>(std::find(logits.begin(), logits.end(), highest) - logits.begin());
  HWY_DYNAMIC_DISPATCH(weigh_all)
  (logits.data(), n, highest, row.params.temperature, values.data());
  return draw(values, row.params, static_cast<uint64_t>(row.step), room.sorted);
}

}  // namespace

void CpuBackend::run(const Sample& op) {
  check(op);
  const auto n_rows = std::ssize(op.rows);
  const View<float, 2> logits = rows_of(op.logits);
  const int64_t n = op.n_tokens, n_rooms = std::min<int64_t>(n_threads_, n_rows);
  // Whole cache lines for each thread.
  const int64_t stride = (n + 15) / 16 * 16;
  auto* sorted = scratch_.get<Candidate>(2 * n_rooms * stride);
  auto* values = reinterpret_cast<float*>(sorted + n_rooms * stride);
  auto* counts = reinterpret_cast<uint32_t*>(values + n_rooms * stride);
  parallel_for(n_threads_, n_rows, [&](int64_t i, int thread) {
    const Sample::Row& row = op.rows[static_cast<size_t>(i)];
    const int64_t at = thread * stride;
    const std::span<const float> eligible(logits[row.logits_row].data, static_cast<size_t>(n));
    const int32_t token = sample(eligible, row, {values + at, counts + at, sorted + at});
    op.token[i] = token;
    if (row.history.size() > 0) row.history[row.n_prompt + row.step] = token;
  });
}

}  // namespace ei::cpu
#endif
