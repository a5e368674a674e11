// Blocks of integer weights in registers for AVX512-VNNI, which multiplies unsigned bytes by signed
// ones: 64 weights to a vector, no number negative. Included once per instruction set,
// inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_WEIGHTS_VNNI_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_WEIGHTS_VNNI_INL_H_
#undef EI_CPU_WEIGHTS_VNNI_INL_H_
#else
#define EI_CPU_WEIGHTS_VNNI_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "ei/cpu/weights_by_fours-inl.h"

#if HWY_TARGET <= HWY_AVX3
HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// Groups whose scales are in a vector: those of a large block, or 16 blocks of 32 weights.
template <WeightFormat kFormat>
constexpr int64_t kChunkGroups = block_of(kFormat).weights == 32
                                     ? 16
                                     : block_of(kFormat).weights / group_of(kFormat);

// What is added to whole numbers so that none is negative.
template <WeightFormat kFormat>
constexpr int kBias = [] {
  using enum WeightFormat;
  switch (kFormat) {
    case kQ3_K:
      return 4;
    case kQ4_0:
      return 8;
    case kQ5_0:
      return 16;
    case kQ6_K:
      return 32;
    default:
      return has_offset(kFormat) ? 0 : 128;
  }
}();

// Bytes [0, kBytes) and those from the second pointer on, each twice if they are 16.
template <int64_t kBytes>
HWY_INLINE __m512i load_two(const uint8_t* first, const uint8_t* second) {
  if constexpr (kBytes == 32) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low),
                              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)), 1);
  } else {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
    return _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(low), 0xFF00,
                                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(second)));
  }
}
HWY_INLINE __m512i nibbles_of_halves(__m512i bytes) {  // of 16 bytes, twice, low ones first
  return bits(_mm512_srlv_epi64(bytes, _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0)), 15);
}

// The v-th 64 weights of a chunk, in order, where blocks are of 32.
template <WeightFormat kFormat>
HWY_INLINE __m512i load_bytes(const uint8_t* chunk, int64_t v) {
  using enum WeightFormat;
  constexpr int64_t kBytes = block_of(kFormat).bytes;
  const uint8_t *block = chunk + 2 * v * kBytes, *next = block + kBytes;  // of 32 weights each
  if constexpr (kFormat == kQ8_0 || kFormat == kINT8) {
    constexpr int64_t kAt = kFormat == kQ8_0 ? 2 : 4;
    return _mm512_xor_si512(load_two<32>(block + kAt, next + kAt), _mm512_set1_epi8(char(128)));
  } else if constexpr (kFormat == kQ4_0 || kFormat == kQ4_1 || kFormat == kIQ4_NL) {
    constexpr int64_t kAt = kFormat == kQ4_1 ? 4 : 2;
    const __m512i nibbles = nibbles_of_halves(load_two<16>(block + kAt, next + kAt));
    return kFormat == kIQ4_NL ? of_table(nibbles) : nibbles;
  } else if constexpr (kFormat == kQ5_0 || kFormat == kQ5_1) {
    constexpr int64_t kAt = kFormat == kQ5_1 ? 4 : 2;
    uint32_t low, high;
    std::memcpy(&low, block + kAt, sizeof low);
    std::memcpy(&high, next + kAt, sizeof high);
    const __m512i nibbles = nibbles_of_halves(load_two<16>(block + kAt + 4, next + kAt + 4));
    return _mm512_mask_add_epi8(nibbles, uint64_t{high} << 32 | low, nibbles, _mm512_set1_epi8(16));
  }
}

HWY_INLINE __m512 half_everywhere(const uint8_t* at) {
  int16_t half;
  std::memcpy(&half, at, sizeof half);
  return _mm512_cvtph_ps(_mm256_set1_epi16(half));
}

// Scales of the groups of a chunk that there are, and offsets, the first in lane kFirstOffset.
template <WeightFormat kFormat>
constexpr int kFirstOffset =
    kFormat == WeightFormat::kQ4_K || kFormat == WeightFormat::kQ5_K ? 8 : 0;
template <WeightFormat kFormat>
HWY_INLINE void load_scales(const uint8_t* chunk, __mmask16 groups, __m512& scale, __m512& offset) {
  using enum WeightFormat;
  if constexpr (block_of(kFormat).weights == 32) {
    const __m512i bytes = _mm512_set1_epi32(static_cast<int>(block_of(kFormat).bytes));
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i words = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), groups,
                                                      _mm512_mullo_epi32(lane, bytes), chunk, 1);
    scale = kFormat == kINT8 ? _mm512_castsi512_ps(words)
                             : _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
    if constexpr (has_offset(kFormat))
      offset = _mm512_sub_ps(_mm512_setzero_ps(),
                             _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16))));
  } else if constexpr (kFormat == kQ4_K || kFormat == kQ5_K) {
    // From bytes 4 to 15 scales, then offsets: low bits of the first four of each, of the other
    // four of each, and the upper bits of these above the former.
    const __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i*>(chunk));
    const __m128i low = _mm_srlv_epi32(
        _mm_shuffle_epi8(block,
                         _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15)),
        _mm_setr_epi32(0, 0, 0, 4));
    const __m128i high =
        _mm_shuffle_epi8(_mm_srli_epi32(block, 2),
                         _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    const __m128i bytes = _mm_or_si128(
        _mm_and_si128(low, _mm_setr_epi32(0x3F3F3F3F, 0x0F0F0F0F, 0x3F3F3F3F, 0x0F0F0F0F)),
        _mm_and_si128(high, _mm_set1_epi8(0x30)));
    uint32_t halves;
    std::memcpy(&halves, chunk, sizeof halves);
    const __m256i eight_of_each = _mm256_setr_epi64x(0x0100010001000100, 0x0100010001000100,
                                                     0x0302030203020302, 0x0302030203020302);
    const __m256i d =
        _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(halves)), eight_of_each);
    scale = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), _mm512_cvtph_ps(d));
    offset = scale;
  } else if constexpr (kFormat == kQ6_K) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(chunk + 192));
    scale = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)),
                          half_everywhere(chunk + 208));
  } else {
    alignas(64) float scales[16] = {}, offsets[16] = {};
    unpack_scales<kFormat>(chunk, scales, offsets);
    scale = _mm512_load_ps(scales);
    offset = _mm512_load_ps(offsets);
  }
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
#endif
