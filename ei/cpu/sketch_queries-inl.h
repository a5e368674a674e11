// How the queries of a sketch are kept. Included once per instruction set, inside
// HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_SKETCH_QUERIES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_SKETCH_QUERIES_INL_H_
#undef EI_CPU_SKETCH_QUERIES_INL_H_
#else
#define EI_CPU_SKETCH_QUERIES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ei/ops/estimate_mass.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Queries lie side by side in vectors, one in each 32 bits, and keys are broadcast, so that the
// highest logit of a block's keys is a maximum of vectors. 32 bits hold four dimensions: products
// of unsigned and signed bytes are added in pairs to 16 bits, these over the groups of a run, and
// only then to 32. Keys are k + 64, from 1 to 127; what the 64 add is the same for all keys of a
// query and where its sums start from. So these wrap around, and are right as long as the logits'
// parts fit 16 bits, which sketch_step() sees to.
constexpr int64_t kStripQueries = 32;  // worked on at a time
constexpr int64_t kRun = kSketchRun;   // groups of four dimensions that are added in 16 bits

// Where the queries of a strip stand: those of a group as many places apart as there are groups, so
// that a group's maximum is one of vectors.
constexpr int64_t kStripGroups = kStripQueries / kSketchGroup;
constexpr int64_t place_of(int64_t query) {
  return query % kSketchGroup * kStripGroups + query / kSketchGroup;
}

// int8 queries of a strip: [w / 4][kStripQueries][4]; beside them what the sums of each run start
// from, int16 [runs][kStripQueries][2]; and what a whole number stands for, per query.
struct StripQueries {
  int8_t* q = nullptr;
  int16_t* start = nullptr;
  float* scale = nullptr;
  int32_t* position = nullptr;  // in their segment, [kStripQueries]
};

HWY_INLINE int64_t runs_of(int64_t w) { return (w / 4 + kRun - 1) / kRun; }

// The strip's queries from their projections x [w, kStripQueries], each in a lane; `unit` is what
// one stands for. Numbers that are none count as 0.
HWY_INLINE void quantize_queries(const float* HWY_RESTRICT x, int64_t w, float unit,
                                 const StripQueries& to) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto zero = hn::Zero(d);
  for (int64_t i = 0; i < kStripQueries; i += static_cast<int64_t>(hn::Lanes(d))) {
    const auto number = [&](int64_t k) HWY_ATTR { return hn::LoadU(d, x + k * kStripQueries + i); };
    auto most = zero, most_of_part = zero;  // as sketch_step() has them
    for (int64_t run = 0; run < w; run += 4 * kRun)
      for (int64_t half = 0; half < 4; half += 2) {
        auto sum = zero;
        for (int64_t k = run + half; k < std::min(run + 4 * kRun, w); k += 4) {
          const auto first = hn::Abs(number(k)), second = hn::Abs(number(k + 1));
          most = hn::Max(second, hn::Max(first, most));  // the second of them if one is NaN
          sum = hn::Add(sum, hn::Add(first, second));
        }
        most_of_part = hn::Max(sum, most_of_part);
      }
    alignas(64) float step[kStripQueries], part[kStripQueries];
    hn::StoreU(most, d, step);
    hn::StoreU(most_of_part, d, part);
    for (int64_t u = 0; u < static_cast<int64_t>(hn::Lanes(d)); ++u)
      step[u] = sketch_step(step[u], part[u]);
    const auto scale = hn::LoadU(d, step);
    const auto inverse = hn::IfThenElseZero(hn::Gt(scale, zero), hn::Div(hn::Set(d, 1.0f), scale));
    hn::StoreU(hn::Mul(scale, hn::Set(d, unit)), d, to.scale + i);
    for (int64_t run = 0; run < runs_of(w); ++run) {
      auto low = hn::Zero(di), high = hn::Zero(di);
      for (int64_t g = run * kRun; g < std::min((run + 1) * kRun, w / 4); ++g) {
        const auto whole = [&](int64_t u) HWY_ATTR {
          const auto q = hn::NearestInt(hn::Mul(number(4 * g + u), inverse));
          const auto fits = hn::And(hn::Lt(q, hn::Set(di, 128)), hn::Gt(q, hn::Set(di, -128)));
          return hn::IfThenElseZero(fits, q);
        };
        const auto byte = [&](hn::Vec<decltype(di)> q)
                              HWY_ATTR { return hn::And(q, hn::Set(di, 255)); };
        const auto a = whole(0), b = whole(1), c = whole(2), e = whole(3);
        low = hn::Add(low, hn::Add(a, b));
        high = hn::Add(high, hn::Add(c, e));
        const auto four = hn::Or(hn::Or(byte(a), hn::ShiftLeft<8>(byte(b))),
                                 hn::Or(hn::ShiftLeft<16>(byte(c)), hn::ShiftLeft<24>(e)));
        hn::StoreU(four, di, reinterpret_cast<int32_t*>(to.q) + g * kStripQueries + i);
      }
      const auto both = hn::Or(hn::And(hn::Mul(low, hn::Set(di, -64)), hn::Set(di, 0xFFFF)),
                               hn::ShiftLeft<16>(hn::Mul(high, hn::Set(di, -64))));
      hn::StoreU(both, di, reinterpret_cast<int32_t*>(to.start) + run * kStripQueries + i);
    }
  }
}

// With kCausal: the sums of the queries in places from `place` on that see key j, the lowest number
// for others.
template <bool kCausal, class D>
HWY_INLINE hn::Vec<D> seen(D d, hn::Vec<D> sums, const int32_t* position, int64_t j) {
  if constexpr (!kCausal) return sums;
  const auto hidden = hn::Lt(hn::LoadU(d, position), hn::Set(d, static_cast<int32_t>(j)));
  return hn::IfThenElse(hidden, hn::Set(d, std::numeric_limits<int32_t>::min()), sums);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
