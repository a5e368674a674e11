// Tiles of keys and values in float, and the register-blocked products on them that attention,
// votes and block scores share. Included once per instruction set, inside HWY_BEFORE_NAMESPACE.
#if defined(EI_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EI_CPU_TILE_INL_H_
#undef EI_CPU_TILE_INL_H_
#else
#define EI_CPU_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "ei/base/half.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/softmax-inl.h"
#include "ei/cpu/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Registers: kRows x kVectors accumulators, a vector of B per column and one broadcast of A. 32
// registers with AVX-512, 16 before.
constexpr int64_t kRows = 6;
constexpr int64_t kVectors = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

// Rows that a panel is used for while it is in L1.
constexpr int64_t kStrip = 4 * kRows;

// Columns of a full panel, of fewer vectors where columns are few, and those of the panels that
// hold n.
template <int64_t kN = kVectors>
HWY_INLINE int64_t panel_columns() {
  return kN * static_cast<int64_t>(hn::Lanes(F32()));
}
template <int64_t kN = kVectors>
HWY_INLINE int64_t full_panels(int64_t n) {
  return (n + panel_columns<kN>() - 1) / panel_columns<kN>() * panel_columns<kN>();
}

// c[i][j] (+)= sum_k a[i][k] b[k][j] for kM rows and kN vectors of columns; a's rows are a_stride
// apart, c's c_stride, b's lie side by side. With kAdd, c's rows are first multiplied by factor[i].
template <int64_t kM, int64_t kN, bool kAdd>
HWY_INLINE void micro_product(int64_t depth, const float* HWY_RESTRICT a, int64_t a_stride,
                              const float* HWY_RESTRICT b, float* HWY_RESTRICT c, int64_t c_stride,
                              const float* factor) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  V32 sum[kM][kN];
  HWY_UNROLL(6)
  for (int64_t i = 0; i < kM; ++i) HWY_UNROLL(4)
  for (int64_t j = 0; j < kN; ++j) sum[i][j] = hn::Zero(d);
  for (int64_t k = 0; k < depth; ++k) {
    V32 column[kN];
    HWY_UNROLL(4)
    for (int64_t j = 0; j < kN; ++j) column[j] = hn::LoadU(d, b + (k * kN + j) * lanes);
    HWY_UNROLL(6)
    for (int64_t i = 0; i < kM; ++i) {
      const V32 x = hn::Set(d, a[i * a_stride + k]);
      HWY_UNROLL(4)
      for (int64_t j = 0; j < kN; ++j) sum[i][j] = hn::MulAdd(x, column[j], sum[i][j]);
    }
  }
  HWY_UNROLL(6)
  for (int64_t i = 0; i < kM; ++i) HWY_UNROLL(4)
  for (int64_t j = 0; j < kN; ++j) {
    float* to = c + i * c_stride + j * lanes;
    if constexpr (kAdd) sum[i][j] = hn::MulAdd(hn::LoadU(d, to), hn::Set(d, factor[i]), sum[i][j]);
    hn::StoreU(sum[i][j], d, to);
  }
}

// The same for m rows and one panel of kN vectors.
template <int64_t kN, bool kAdd>
HWY_INLINE void panel_product(int64_t m, int64_t depth, const float* a, int64_t a_stride,
                              const float* b, float* c, int64_t c_stride, const float* factor) {
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows)
    micro_product<kRows, kN, kAdd>(depth, a + i * a_stride, a_stride, b, c + i * c_stride, c_stride,
                                   kAdd ? factor + i : nullptr);
  a += i * a_stride, c += i * c_stride;
  if constexpr (kAdd) factor += i;
  switch (m - i) {
    case 5:
      return micro_product<5, kN, kAdd>(depth, a, a_stride, b, c, c_stride, factor);
    case 4:
      return micro_product<4, kN, kAdd>(depth, a, a_stride, b, c, c_stride, factor);
    case 3:
      return micro_product<3, kN, kAdd>(depth, a, a_stride, b, c, c_stride, factor);
    case 2:
      return micro_product<2, kN, kAdd>(depth, a, a_stride, b, c, c_stride, factor);
    case 1:
      return micro_product<1, kN, kAdd>(depth, a, a_stride, b, c, c_stride, factor);
    default:
      return;
  }
}

// The same for m rows and n columns, a multiple of the vector length, of a b in panels: kN
// vectors of columns, single ones at the end. The panel of column j on starts at b + j * b_rows,
// and its rows of columns follow each other. It is used for all rows while it is in L1.
template <bool kAdd, int64_t kN = kVectors>
HWY_INLINE void product(int64_t m, int64_t n, int64_t depth, const float* a, int64_t a_stride,
                        const float* b, int64_t b_rows, float* c, int64_t c_stride,
                        const float* factor = nullptr) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(F32()));
  int64_t j = 0;
  for (; j + kN * lanes <= n; j += kN * lanes)
    panel_product<kN, kAdd>(m, depth, a, a_stride, b + j * b_rows, c + j, c_stride, factor);
  for (; j < n; j += lanes)
    panel_product<1, kAdd>(m, depth, a, a_stride, b + j * b_rows, c + j, c_stride, factor);
}

// As many numbers of a row of the cache, from the c-th on, as D has lanes.
template <class D>
HWY_INLINE hn::Vec<D> load_numbers(D d, const char* row, DType type, int64_t c) {
  const char* from = row + PageLayout::numbers_at(type) + c * dtype_bytes(type);
  if (type == DType::kF32) return hn::LoadU(d, reinterpret_cast<const float*>(from));
  if (type == DType::kQ8) {
    const hn::Rebind<int8_t, D> d8;
    const hn::RebindToSigned<D> di;
    const auto whole = hn::PromoteTo(di, hn::LoadU(d8, reinterpret_cast<const int8_t*>(from)));
    return hn::Mul(hn::ConvertTo(d, whole), hn::Set(d, scale_of(row)));
  }
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> dh;
  const auto bits = hn::LoadU(dh, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}

// Numbers [c, c + n) of a row of the cache as floats.
HWY_INLINE void widen(const char* row, DType type, int64_t c, int64_t n, float* HWY_RESTRICT to) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(load_numbers(d, row, type, c + i), d, to + i);
  for (; i < n; ++i) to[i] = load_number(row, type, c + i);
}

// Puts n <= kTileKeys rows of d numbers side by side into the columns of tile, panels of d rows.
// Columns behind the n-th, up to a full panel, are defined but mean nothing.
template <int64_t kN = kVectors>
HWY_INLINE void pack_columns(int64_t n, int64_t d, DType type, const char* const* rows,
                             float* HWY_RESTRICT tile) {
  const int64_t wide = panel_columns<kN>(), at_once = std::min<int64_t>(4, wide);
  for (int64_t j = 0; j < full_panels<kN>(n); j += at_once) {
    const char* row[4];
    for (int64_t u = 0; u < at_once; ++u) row[u] = rows[std::min(j + u, n - 1)];
    float* to = tile + j / wide * wide * d + j % wide;
    int64_t c = 0;
#if HWY_TARGET != HWY_SCALAR
    const auto four = [&](int u) HWY_ATTR {
      return load_numbers(hn::FixedTag<float, 4>(), row[u], type, c);
    };
    for (; c + 4 <= d; c += 4)
      store_columns<float>(four(0), four(1), four(2), four(3), wide, to + c * wide);
#endif
    for (; c < d; ++c)
      for (int64_t u = 0; u < at_once; ++u) to[c * wide + u] = load_number(row[u], type, c);
  }
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
