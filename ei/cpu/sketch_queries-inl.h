// How the queries of a sketch are kept. Included once per instruction set, inside
// HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_SKETCH_QUERIES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_SKETCH_QUERIES_INL_H_
#undef EI_CPU_SKETCH_QUERIES_INL_H_
#else
#define EI_CPU_SKETCH_QUERIES_INL_H_
#endif

#include <hwy/highway.h>

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
struct Queries {  // the reverse
  alignas(64) int32_t at[kStripQueries] = {};
  constexpr Queries() {
    for (int32_t i = 0; i < kStripQueries; ++i) at[place_of(i)] = i;
  }
};
inline constexpr Queries kQueries;

// int8 queries of a strip: [w / 4][kStripQueries][4]; beside them what the sums of each run start
// from, int16 [runs][kStripQueries][2]; and what a whole number stands for, per query.
struct StripQueries {
  int8_t* q = nullptr;
  int16_t* start = nullptr;
  float* scale = nullptr;
};

HWY_INLINE int64_t runs_of(int64_t w) { return (w / 4 + kRun - 1) / kRun; }

// With kCausal: the sums of the queries in places from `place` on that see key j, the lowest number
// for others.
template <bool kCausal, class D>
HWY_INLINE hn::Vec<D> seen(D d, hn::Vec<D> sums, int64_t place, int64_t j) {
  if constexpr (!kCausal) return sums;
  const auto hidden =
      hn::Lt(hn::LoadU(d, kQueries.at + place), hn::Set(d, static_cast<int32_t>(j)));
  return hn::IfThenElse(hidden, hn::Set(d, std::numeric_limits<int32_t>::min()), sums);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
