// The products of a sketch by AVX512-VNNI, which adds four products of bytes to 32 bits at once.
// Included once per instruction set, inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_SKETCH_VNNI_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_SKETCH_VNNI_INL_H_
#undef EI_CPU_SKETCH_VNNI_INL_H_
#else
#define EI_CPU_SKETCH_VNNI_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>
#include <limits>

#include "ei/cpu/amx.h"
#include "ei/cpu/sketch_queries-inl.h"

#if HWY_TARGET <= HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// highest_products() for kN keys: half the instructions, of twice the width.
template <bool kCausal, int kN>
HWY_INLINE void highest_of(const uint8_t* HWY_RESTRICT keys, int64_t w, const StripQueries& queries,
                           int64_t first, const __m512i (&start)[2], __m512i (&most)[2]) {
  const hn::FixedTag<int32_t, 16> d;
  __m512i sums[kN][2];
  HWY_UNROLL(8)
  for (int j = 0; j < kN; ++j) sums[j][0] = start[0], sums[j][1] = start[1];
  for (int64_t g = 0; g < w / 4; ++g) {
    __m512i query[2];
    for (int v = 0; v < 2; ++v)
      query[v] = _mm512_loadu_si512(queries.q + (g * kStripQueries + v * 16) * 4);
    HWY_UNROLL(8)
    for (int j = 0; j < kN; ++j) {
      int32_t four;
      std::memcpy(&four, keys + j * w + 4 * g, sizeof four);
      const __m512i key = _mm512_set1_epi32(four);
      for (int v = 0; v < 2; ++v)
        asm("vpdpbusd %2, %1, %0" : "+v"(sums[j][v]) : "v"(key), "v"(query[v]));
    }
  }
  HWY_UNROLL(8)
  for (int j = 0; j < kN; ++j)
    for (int v = 0; v < 2; ++v) {
      const auto sum =
          seen<kCausal>(d, hn::Vec<decltype(d)>{sums[j][v]}, queries.position + v * 16, first + j);
      most[v] = _mm512_max_epi32(most[v], sum.raw);
    }
}

template <bool kCausal>
void highest_by_vnni(int64_t n, const uint8_t* HWY_RESTRICT keys, int64_t w,
                     const StripQueries& queries, int64_t first, int32_t* HWY_RESTRICT out) {
  const auto lowest = _mm512_set1_epi32(std::numeric_limits<int32_t>::min());
  __m512i most[2] = {lowest, lowest};
  // What the 64 on top of each key adds, from the queries: sums of 16 bits may have wrapped around.
  __m512i start[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  const __m512i on_top = _mm512_set1_epi8(64);
  for (int64_t g = 0; g < w / 4; ++g)
    for (int v = 0; v < 2; ++v) {
      const __m512i query = _mm512_loadu_si512(queries.q + (g * kStripQueries + v * 16) * 4);
      asm("vpdpbusd %2, %1, %0" : "+v"(start[v]) : "v"(on_top), "v"(query));
    }
  for (__m512i& sum : start) sum = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
  int64_t j = 0;
  for (; j + 8 <= n; j += 8)
    highest_of<kCausal, 8>(keys + j * w, w, queries, first + j, start, most);
  for (; j < n; ++j) highest_of<kCausal, 1>(keys + j * w, w, queries, first + j, start, most);
  for (int v = 0; v < 2; ++v) _mm512_storeu_si512(out + v * 16, most[v]);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
