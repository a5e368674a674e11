// Tiles of keys and values in float, and the register-blocked products on them that attention,
// votes and block scores share. Included once per instruction set, inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_TILE_INL_H_
#undef EI_CPU_TILE_INL_H_
#else
#define EI_CPU_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "ei/base/half.h"
#include "ei/cpu/numbers.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using V32 = hn::Vec<F32>;

// Registers: kRows x kVectors accumulators, a vector of B per column and one broadcast of A. 32
// registers with AVX-512, 16 before.
constexpr int64_t kRows = 6;
constexpr int64_t kVectors = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

// e^x for x <= 0, relative error below 3e-7 down to 2^-125; 0 below.
HWY_INLINE V32 exp_negative(V32 x) {
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const V32 t = hn::Mul(x, hn::Set(d, 1.44269504f));
  const V32 n = hn::Round(hn::Max(t, hn::Set(d, -126.0f)));
  // x - n ln 2 in two steps, then the series of e^r on [-ln 2 / 2, ln 2 / 2].
  const V32 r =
      hn::NegMulAdd(n, hn::Set(d, 1.42860677e-6f), hn::NegMulAdd(n, hn::Set(d, 0.693145752f), x));
  V32 p = hn::Set(d, 1.0f / 720);
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto scale = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::IfThenElseZero(hn::Ge(t, hn::Set(d, -125.5f)), hn::Mul(p, hn::BitCast(d, scale)));
}

// c[i][j] (+)= sum_k a[i][k] b[k][j] for kM rows and kN vectors of columns; a's rows are a_stride
// apart, b's b_stride, c's c_stride. With kAdd, c's rows are first multiplied by factor[i].
template <int64_t kM, int64_t kN, bool kAdd>
HWY_INLINE void micro_product(int64_t depth, const float* HWY_RESTRICT a, int64_t a_stride,
                              const float* HWY_RESTRICT b, int64_t b_stride, float* HWY_RESTRICT c,
                              int64_t c_stride, const float* factor) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  V32 sum[kM][kN];
  HWY_UNROLL(6)
  for (int64_t i = 0; i < kM; ++i) HWY_UNROLL(4)
  for (int64_t j = 0; j < kN; ++j)
    sum[i][j] = kAdd ? hn::Mul(hn::LoadU(d, c + i * c_stride + j * lanes), hn::Set(d, factor[i]))
                     : hn::Zero(d);
  for (int64_t k = 0; k < depth; ++k) {
    V32 column[kN];
    HWY_UNROLL(4)
    for (int64_t j = 0; j < kN; ++j) column[j] = hn::LoadU(d, b + k * b_stride + j * lanes);
    HWY_UNROLL(6)
    for (int64_t i = 0; i < kM; ++i) {
      const V32 x = hn::Set(d, a[i * a_stride + k]);
      HWY_UNROLL(4)
      for (int64_t j = 0; j < kN; ++j) sum[i][j] = hn::MulAdd(x, column[j], sum[i][j]);
    }
  }
  HWY_UNROLL(6)
  for (int64_t i = 0; i < kM; ++i) HWY_UNROLL(4)
  for (int64_t j = 0; j < kN; ++j) hn::StoreU(sum[i][j], d, c + i * c_stride + j * lanes);
}

// The same for m <= kRows rows and n columns, a multiple of the vector length.
template <int64_t kM, bool kAdd>
HWY_INLINE void row_product(int64_t n, int64_t depth, const float* a, int64_t a_stride,
                            const float* b, int64_t b_stride, float* c, int64_t c_stride,
                            const float* factor) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(F32()));
  int64_t j = 0;
  for (; j + kVectors * lanes <= n; j += kVectors * lanes)
    micro_product<kM, kVectors, kAdd>(depth, a, a_stride, b + j, b_stride, c + j, c_stride, factor);
  for (; j < n; j += lanes)
    micro_product<kM, 1, kAdd>(depth, a, a_stride, b + j, b_stride, c + j, c_stride, factor);
}

template <bool kAdd>
HWY_INLINE void product(int64_t m, int64_t n, int64_t depth, const float* a, int64_t a_stride,
                        const float* b, int64_t b_stride, float* c, int64_t c_stride,
                        const float* factor = nullptr) {
  switch (m) {
    case 6:
      return row_product<6, kAdd>(n, depth, a, a_stride, b, b_stride, c, c_stride, factor);
    case 5:
      return row_product<5, kAdd>(n, depth, a, a_stride, b, b_stride, c, c_stride, factor);
    case 4:
      return row_product<4, kAdd>(n, depth, a, a_stride, b, b_stride, c, c_stride, factor);
    case 3:
      return row_product<3, kAdd>(n, depth, a, a_stride, b, b_stride, c, c_stride, factor);
    case 2:
      return row_product<2, kAdd>(n, depth, a, a_stride, b, b_stride, c, c_stride, factor);
    default:
      return row_product<1, kAdd>(n, depth, a, a_stride, b, b_stride, c, c_stride, factor);
  }
}

// One row of `n` bf16 or float values as floats.
HWY_INLINE void widen(const void* from, DType type, int64_t n, float* HWY_RESTRICT to) {
  if (type == DType::kF32) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  const auto* bits = static_cast<const uint16_t*>(from);
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  const hn::Rebind<uint16_t, F32> dh;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(dh, bits + i)))), d,
               to + i);
  for (; i < n; ++i) to[i] = from_bf16(bits[i]);
}

// Puts n <= kTileKeys rows of d numbers, the j-th at row_at(j), side by side into the columns of
// tile [d, kTileKeys], zeros beyond. `rows` has room for 16 of them.
template <class RowAt>
HWY_INLINE void pack_columns(int64_t n, int64_t d, DType type, const RowAt& row_at,
                             float* HWY_RESTRICT tile, float* HWY_RESTRICT rows) {
  for (int64_t j = 0; j < kTileKeys; j += 16) {
    for (int64_t u = 0; u < 16; ++u) {
      if (j + u < n) {
        widen(row_at(j + u), type, d, rows + u * d);
      } else {
        for (int64_t c = 0; c < d; ++c) rows[u * d + c] = 0;
      }
    }
    for (int64_t c = 0; c < d; ++c)
      for (int64_t u = 0; u < 16; ++u) tile[c * kTileKeys + j + u] = rows[u * d + c];
  }
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
