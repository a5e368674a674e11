// Blocks of integer weights in registers, as whole numbers of 16 bits. Included once per
// instruction set, inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_WEIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_WEIGHTS_INL_H_
#undef EI_CPU_WEIGHTS_INL_H_
#else
#define EI_CPU_WEIGHTS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "ei/ops/weight_blocks.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// sum + the products of pairs of 16-bit numbers, each lane's two added up.
template <class D>
HWY_INLINE hn::Vec<D> add_products(D d, hn::Vec<D> a, hn::Vec<D> b, hn::Vec<D> sum) {
#if HWY_TARGET == HWY_SCALAR
  const int32_t x = hn::GetLane(a), y = hn::GetLane(b);
  return hn::Add(
      sum, hn::Set(d, static_cast<int16_t>(x) * static_cast<int16_t>(y) + (x >> 16) * (y >> 16)));
#else
  const hn::Repartition<int16_t, D> d16;
  return hn::ReorderWidenMulAccumulate(d, hn::BitCast(d16, a), hn::BitCast(d16, b), sum, sum);
#endif
}

template <class D>
HWY_INLINE hn::Vec<D> load_pairs(D d, const int16_t* from) {
#if HWY_TARGET == HWY_SCALAR
  int32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return hn::Set(d, pair);
#else
  return hn::BitCast(d, hn::LoadU(hn::Repartition<int16_t, D>(), from));
#endif
}

template <class D>
HWY_INLINE void store_pairs(D, hn::Vec<D> pairs, int16_t* to) {
#if HWY_TARGET == HWY_SCALAR
  const int32_t pair = hn::GetLane(pairs);
  std::memcpy(to, &pair, sizeof pair);
#else
  const hn::Repartition<int16_t, D> d16;
  hn::StoreU(hn::BitCast(d16, pairs), d16, to);
#endif
}

#if HWY_TARGET != HWY_SCALAR
// v >> n, a constant once loops are unrolled.
template <class V>
HWY_INLINE V shift_right(V v, int64_t n) {
  switch (n) {
    case 1:
      return hn::ShiftRight<1>(v);
    case 2:
      return hn::ShiftRight<2>(v);
    case 3:
      return hn::ShiftRight<3>(v);
    case 4:
      return hn::ShiftRight<4>(v);
    case 5:
      return hn::ShiftRight<5>(v);
    case 6:
      return hn::ShiftRight<6>(v);
    case 7:
      return hn::ShiftRight<7>(v);
    default:
      return v;
  }
}

// q of a block's weights from the k-th on, as many as there are lanes, at most 16.
template <WeightFormat kFormat, class D>
HWY_INLINE hn::Vec<D> load_numbers(D d, const uint8_t* block, int64_t k) {
  using enum WeightFormat;
  const hn::Rebind<uint8_t, D> d8;
  const hn::Rebind<int8_t, D> di8;
  // `n_bits` of bytes from `at` on, `shift` bits up.
  const auto bits = [&](int64_t at, int64_t shift, int n_bits) {
    const auto bytes = hn::PromoteTo(d, hn::LoadU(d8, block + at));
    return hn::And(shift_right(bytes, shift), hn::Set(d, static_cast<int16_t>((1 << n_bits) - 1)));
  };
  const auto minus = [&](hn::Vec<D> q, int16_t zero) { return hn::Sub(q, hn::Set(d, zero)); };
  if constexpr (kFormat == kQ8_0 || kFormat == kINT8) {
    const auto* values = reinterpret_cast<const int8_t*>(block + (kFormat == kQ8_0 ? 2 : 4));
    return hn::PromoteTo(d, hn::LoadU(di8, values + k));
  } else if constexpr (kFormat == kQ4_0) {
    return minus(bits(2 + k % 16, k / 16 * 4, 4), 8);
  } else if constexpr (kFormat == kQ4_1) {
    return bits(4 + k % 16, k / 16 * 4, 4);
  } else if constexpr (kFormat == kQ5_0 || kFormat == kQ5_1) {
    HWY_ALIGN static constexpr int16_t kBit[16] = {1,   2,   4,    8,    16,   32,   64,    128,
                                                   256, 512, 1024, 2048, 4096, 8192, 16384, -32768};
    constexpr int64_t kAt = kFormat == kQ5_1 ? 4 : 2;
    uint32_t word;
    std::memcpy(&word, block + kAt, sizeof word);
    const auto fifth = hn::TestBit(hn::Set(d, static_cast<int16_t>(word >> k)), hn::Load(d, kBit));
    const auto q = hn::Or(bits(kAt + 4 + k % 16, k / 16 * 4, 4),
                          hn::IfThenElseZero(fifth, hn::Set(d, int16_t{16})));
    return kFormat == kQ5_1 ? q : minus(q, 16);
  } else if constexpr (kFormat == kQ2_K) {
    return bits(16 + k / 128 * 32 + k % 32, k / 32 % 4 * 2, 2);
  } else if constexpr (kFormat == kQ3_K) {
    const auto low = bits(32 + k / 128 * 32 + k % 32, k / 32 % 4 * 2, 2);
    return minus(hn::Or(low, hn::ShiftLeft<2>(bits(k % 32, k / 32, 1))), 4);
  } else if constexpr (kFormat == kQ4_K) {
    return bits(16 + k / 64 * 32 + k % 32, k / 32 % 2 * 4, 4);
  } else if constexpr (kFormat == kQ5_K) {
    const auto low = bits(48 + k / 64 * 32 + k % 32, k / 32 % 2 * 4, 4);
    return hn::Or(low, hn::ShiftLeft<4>(bits(16 + k % 32, k / 32, 1)));
  } else if constexpr (kFormat == kQ6_K) {
    const auto low = bits(k / 128 * 64 + k % 64, k / 64 % 2 * 4, 4);
    const auto high = bits(128 + k / 128 * 32 + k % 32, k / 32 % 4 * 2, 2);
    return minus(hn::Or(low, hn::ShiftLeft<4>(high)), 32);
  } else {
    static_assert(kFormat == kIQ4_NL || kFormat == kIQ4_XS);
    HWY_ALIGN static constexpr int8_t kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                     1,    13,   25,  38,  53,  69,  89,  113};
    const int64_t at = (kFormat == kIQ4_NL ? 2 : 8) + k / 32 * 16 + k % 16;
    const auto bytes = hn::LoadU(d8, block + at);
    const auto index =
        k % 32 < 16 ? hn::And(bytes, hn::Set(d8, uint8_t{15})) : hn::ShiftRight<4>(bytes);
    const auto values = hn::Load(hn::FixedTag<int8_t, 16>(), kValues);
    return hn::PromoteTo(d, hn::TableLookupBytes(values, hn::BitCast(di8, index)));
  }
}
#endif

// Pairs of a block's weights from the k-th on.
template <WeightFormat kFormat, class D>
HWY_INLINE hn::Vec<D> load_weight_pairs(D d, const uint8_t* block, int64_t k) {
#if HWY_TARGET == HWY_SCALAR
  int16_t q[block_of(kFormat).weights];
  unpack_numbers<kFormat>(block, q);
  return load_pairs(d, q + k);
#else
  return hn::BitCast(d, load_numbers<kFormat>(hn::Repartition<int16_t, D>(), block, k));
#endif
}

// The half at `at` in every lane.
template <class D>
HWY_INLINE hn::Vec<D> load_half(D d, const uint8_t* at) {
  const hn::Rebind<uint16_t, D> d16;
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), hn::Set(d16, bits)));
}

// A block's scales and offsets, each in every lane.
template <WeightFormat kFormat>
class Scales {
 public:
  HWY_INLINE explicit Scales(const uint8_t* block) : block_(block) {
    if constexpr (kMany) unpack_scales<kFormat>(block, scale_, offset_);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> scale(D d, int64_t g) const {
    if constexpr (kMany) return hn::Set(d, scale_[g]);
    if constexpr (kFormat == WeightFormat::kINT8) return hn::Set(d, float_at(block_));
    return load_half(d, block_);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> offset(D d, int64_t g) const {
    if constexpr (kMany) return hn::Set(d, offset_[g]);
    return hn::Neg(load_half(d, block_ + 2));
  }

 private:
  static constexpr int64_t kGroups = block_of(kFormat).weights / group_of(kFormat);
  static constexpr bool kMany = kGroups > 1;
  const uint8_t* block_;
  float scale_[kGroups], offset_[kGroups];
};

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
