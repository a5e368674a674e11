// Dot products with quantized weights by AVX512-VNNI, which adds four products of bytes to 32 bits
// at once; activations of 16 bits are two signed bytes. Included once per instruction set, inside
// HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_QUANTIZED_VNNI_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_QUANTIZED_VNNI_INL_H_
#undef EI_CPU_QUANTIZED_VNNI_INL_H_
#else
#define EI_CPU_QUANTIZED_VNNI_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "ei/cpu/quantized.h"
#include "ei/cpu/weights_vnni-inl.h"

#if HWY_TARGET <= HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// Four weights by four of x in every lane, by high bytes of x and added to by low ones. Zeroed in
// place: compilers copy a register of zeros, for which a port is needed.
struct Bytes {
  int8_t of_a_vector[64];
};
HWY_INLINE __m512i products_of_bytes(__m512i weights, const int8_t* x) {
  __m512i products;
  asm("vpxor %x0, %x0, %x0\n\tvpdpbusd %2, %1, %0"
      : "=&x"(products)
      : "v"(weights), "m"(*reinterpret_cast<const Bytes*>(x)));
  return products;
}
HWY_INLINE __m512i add_products_of_bytes(__m512i weights, const int8_t* x, __m512i products) {
  asm("vpdpbusd %2, %1, %0"
      : "+v"(products)
      : "v"(weights), "m"(*reinterpret_cast<const Bytes*>(x)));
  return products;
}

// Sums of an output for kN rows of x; the offsets' are taken off at the end.
template <int kN>
struct Sums {
  __m512 products[kN][2], offsets[kN];
};

// Adds `depth` columns of a weight row, a chunk or what is left of one, to an output's sums for the
// rows of x that begin at `at`.
template <WeightFormat kFormat, int kN, bool kWhole>
HWY_INLINE void add_chunk(const IntegerRows& x, const int64_t (&at)[kN], const uint8_t* chunk,
                          int64_t depth, int64_t ahead, Sums<kN>& to) {
  constexpr int64_t kGroup = group_of(kFormat);
  const int64_t n_vectors = kWhole ? kChunkGroups<kFormat> * kGroup / 64 : depth / 64;
  const auto groups =
      static_cast<__mmask16>(kWhole ? (1 << kChunkGroups<kFormat>)-1 : (1 << depth / kGroup) - 1);
  __m512 w_scale, w_offset, scale[kN];
  load_scales<kFormat>(chunk, groups, w_scale, w_offset);
  if constexpr (kBias<kFormat> != 0)
    w_offset = _mm512_mul_ps(w_scale, _mm512_set1_ps(kBias<kFormat>));
  HWY_UNROLL(4)
  for (int i = 0; i < kN; ++i) {
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const float* scales = x.scale + at[i] / 32;
    const __m512 x_scale = kGroup == 32
                               ? _mm512_maskz_loadu_ps(groups, scales)
                               : _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(0xFF, scales));
    scale[i] = _mm512_mul_ps(w_scale, x_scale);
    if constexpr (has_offset(kFormat) || kBias<kFormat> != 0) {
      constexpr int kFirst = kFirstOffset<kFormat>;
      const float* sums = (kGroup == 32 ? x.sums_32 : x.sums_16) + at[i] / kGroup;
      const auto lanes = static_cast<__mmask16>(groups << kFirst);
      to.offsets[i] =
          _mm512_fmadd_ps(w_offset, _mm512_maskz_loadu_ps(lanes, sums - kFirst), to.offsets[i]);
    }
  }
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  // The same place in the outputs that come next is fetched: memory is read on while these are
  // summed up. Not in a function, since calls that do nothing else are left out by compilers.
  const auto* next = reinterpret_cast<const char*>(chunk) + ahead;
  if constexpr (by_fours(kFormat)) {
    __m512i w[4], products[kN];
    HWY_UNROLL(4)
    for (int64_t v = 0; v < 4; ++v) {
      _mm_prefetch(next + 64 * v, _MM_HINT_T0);
      w[v] = load_fours<kFormat>(chunk, v);
    }
    HWY_UNROLL(4)
    for (int i = 0; i < kN; ++i) {
      products[i] = products_of_bytes(w[0], x.high + at[i]);
      HWY_UNROLL(4)
      for (int64_t v = 1; v < 4; ++v)
        products[i] = add_products_of_bytes(w[v], x.high + at[i] + 64 * v, products[i]);
      products[i] = _mm512_slli_epi32(products[i], 8);
      HWY_UNROLL(4)
      for (int64_t v = 0; v < 4; ++v)
        products[i] = add_products_of_bytes(w[v], x.low + at[i] + 64 * v, products[i]);
      const __m512 of_lanes =
          kGroup == 16 ? scale[i] : _mm512_permutexvar_ps(_mm512_srli_epi32(lane, 1), scale[i]);
      to.products[i][0] =
          _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[i]), of_lanes, to.products[i][0]);
    }
  } else {
    // The group of every lane's four weights.
    __m512i group = _mm512_srli_epi32(lane, 3);
    HWY_UNROLL(8)
    for (int64_t v = 0; v < n_vectors; ++v) {
      _mm_prefetch(next + 64 * v, _MM_HINT_T0);
      const __m512i w = load_bytes<kFormat>(chunk, v);
      HWY_UNROLL(4)
      for (int i = 0; i < kN; ++i) {
        const __m512i high = _mm512_slli_epi32(products_of_bytes(w, x.high + at[i] + 64 * v), 8);
        const __m512i products = add_products_of_bytes(w, x.low + at[i] + 64 * v, high);
        __m512& sum = to.products[i][v % 2];
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_permutexvar_ps(group, scale[i]),
                              sum);
      }
      group = _mm512_add_epi32(group, _mm512_set1_epi32(2));
    }
  }
}

// dot_rows() on bytes, kOutputs at a time: the same whole numbers, so that only the order of
// floats' sums differs.
template <WeightFormat kFormat, int kN, int kOutputs>
HWY_INLINE void dot_outputs(const IntegerRows& x, int64_t first, int64_t n,
                            const MatMul::Part& part, int64_t j) {
  constexpr int64_t kChunk = kChunkGroups<kFormat> * group_of(kFormat);
  const int64_t cols = x.cols, bytes = row_bytes(kFormat, cols);
  Sums<kN> sums[kOutputs];
  HWY_UNROLL(4)
  for (int o = 0; o < kOutputs; ++o) {
    HWY_UNROLL(4)
    for (int i = 0; i < kN; ++i)
      sums[o].products[i][0] = sums[o].products[i][1] = sums[o].offsets[i] = _mm512_setzero_ps();
  }
  const auto* rows = reinterpret_cast<const uint8_t*>(part.weight.row(j));
  int64_t from = 0, at[kN];
  for (int i = 0; i < kN; ++i) at[i] = (first + std::min<int64_t>(i, n - 1)) * cols;
  for (; from + kChunk <= cols; from += kChunk) {
    HWY_UNROLL(4)
    for (int o = 0; o < kOutputs; ++o)
      add_chunk<kFormat, kN, true>(x, at, rows + o * bytes, kChunk, kOutputs * bytes, sums[o]);
    rows += row_bytes(kFormat, kChunk);
    HWY_UNROLL(4)
    for (int i = 0; i < kN; ++i) at[i] += kChunk;
  }
  if (from < cols) {
    HWY_UNROLL(4)
    for (int o = 0; o < kOutputs; ++o)
      add_chunk<kFormat, kN, false>(x, at, rows + o * bytes, cols - from, kOutputs * bytes,
                                    sums[o]);
  }
  for (int i = 0; i < n; ++i) {
    HWY_UNROLL(4)
    for (int o = 0; o < kOutputs; ++o) {
      const __m512 all = _mm512_add_ps(sums[o].products[i][0], sums[o].products[i][1]);
      float total = _mm512_reduce_add_ps(_mm512_sub_ps(all, sums[o].offsets[i]));
      if (part.bias.data != nullptr) total += part.bias[j + o];
      float& to = static_cast<float*>(part.out.data)[(first + i) * part.out.cols + j + o];
      to = part.accumulate ? to + total : total;
    }
  }
}

template <WeightFormat kFormat, int kN>
void dot_bytes(const IntegerRows& x, int64_t first, int64_t n, const MatMul::Part& part,
               int64_t begin, int64_t end) {
  constexpr int kOutputs = kN == 1 ? 4 : 1;  // rows of weights that memory is read from at once
  int64_t j = begin;
  for (; j + kOutputs <= end; j += kOutputs)
    dot_outputs<kFormat, kN, kOutputs>(x, first, n, part, j);
  for (; j < end; ++j) dot_outputs<kFormat, kN, 1>(x, first, n, part, j);
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
