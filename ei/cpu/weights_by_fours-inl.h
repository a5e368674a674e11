// Blocks of 256 integer weights in registers for AVX512-VNNI, as unsigned bytes: a vector has four
// of every 16, in the lane of their number, so that the lanes of all four vectors of a block have
// the scales of the same groups. Included once per instruction set, inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_WEIGHTS_BY_FOURS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_WEIGHTS_BY_FOURS_INL_H_
#undef EI_CPU_WEIGHTS_BY_FOURS_INL_H_
#else
#define EI_CPU_WEIGHTS_BY_FOURS_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstdint>
#include <cstring>

#include "ei/ops/weight_blocks.h"

#if HWY_TARGET <= HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

HWY_INLINE __m512i load_twice(const uint8_t* from) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

HWY_INLINE __m512i bits(__m512i bytes, char mask) {
  return _mm512_and_si512(bytes, _mm512_set1_epi8(mask));
}
HWY_INLINE __m512i add_bits(__m512i to, __m512i bytes, char mask) {
  return _mm512_or_si512(to, bits(bytes, mask));
}
HWY_INLINE __m512i of_table(__m512i index) {  // IQ4's values, 128 added
  const __m128i values =
      _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, char(129), char(141), char(153), char(166),
                    char(181), char(197), char(217), char(241));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), index);
}

// f(lane) in every lane.
template <class F>
HWY_INLINE __m512i in_lanes(F) {
  static constexpr auto kNumbers = [] {
    std::array<int32_t, 16> numbers{};
    for (int32_t lane = 0; lane < 16; ++lane) numbers[static_cast<size_t>(lane)] = F()(lane);
    return numbers;
  }();
  return _mm512_loadu_si512(kNumbers.data());
}
// Words of 32 bits of 32, 64 or 128 bytes.
HWY_INLINE __m512i words_of_32(const uint8_t* from, __m512i index) {
  return _mm512_permutexvar_epi32(index, load_twice(from));
}
HWY_INLINE __m512i words_of_64(const uint8_t* from, __m512i index) {
  return _mm512_permutexvar_epi32(index, _mm512_loadu_si512(from));
}
HWY_INLINE __m512i words_of_128(const uint8_t* from, __m512i index) {
  return _mm512_permutex2var_epi32(_mm512_loadu_si512(from), index, _mm512_loadu_si512(from + 64));
}

// The v-th four of every 16 weights of a block.
template <WeightFormat kFormat>
HWY_INLINE __m512i load_fours(const uint8_t* block, int64_t v) {
  using enum WeightFormat;
  const auto word = [v](auto f) HWY_ATTR {
    return _mm512_add_epi32(in_lanes(f), _mm512_set1_epi32(static_cast<int>(v)));
  };
  if constexpr (kFormat == kQ2_K || kFormat == kQ3_K) {
    const __m512i twos = words_of_64(block + (kFormat == kQ2_K ? 16 : 32),
                                     word([](int l) { return l / 8 * 8 + l % 2 * 4; }));
    const __m512i low =
        bits(_mm512_srlv_epi32(twos, in_lanes([](int l) { return l % 8 / 2 * 2; })), 3);
    if constexpr (kFormat == kQ2_K) return low;
    const __m512i high = words_of_32(block, word([](int l) { return l % 2 * 4; }));
    return add_bits(low, _mm512_rolv_epi32(high, in_lanes([](int l) { return 34 - l / 2; })), 4);
  } else if constexpr (kFormat == kQ4_K || kFormat == kQ5_K) {
    const __m512i nibbles = words_of_128(block + (kFormat == kQ4_K ? 16 : 48),
                                         word([](int l) { return l / 4 * 8 + l % 2 * 4; }));
    const __m512i low =
        bits(_mm512_srlv_epi32(nibbles, in_lanes([](int l) { return l / 2 % 2 * 4; })), 15);
    if constexpr (kFormat == kQ4_K) return low;
    const __m512i fifth = words_of_32(block + 16, word([](int l) { return l % 2 * 4; }));
    return add_bits(low, _mm512_rolv_epi32(fifth, in_lanes([](int l) { return 36 - l / 2; })), 16);
  } else if constexpr (kFormat == kQ6_K) {
    const __m512i nibbles = words_of_128(block, word([](int l) { return l / 8 * 16 + l % 4 * 4; }));
    const __m512i low =
        bits(_mm512_srlv_epi32(nibbles, in_lanes([](int l) { return l / 4 % 2 * 4; })), 15);
    const __m512i twos =
        words_of_64(block + 128, word([](int l) { return l / 8 * 8 + l % 2 * 4; }));
    return add_bits(
        low, _mm512_rolv_epi32(twos, in_lanes([](int l) { return 36 - l % 8 / 2 * 2; })), 48);
  } else {
    static_assert(kFormat == kIQ4_XS);
    const __m512i nibbles = words_of_128(block + 8, word([](int l) { return l / 2 * 4; }));
    return of_table(
        bits(_mm512_srlv_epi32(nibbles, in_lanes([](int l) { return l % 2 * 4; })), 15));
  }
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
