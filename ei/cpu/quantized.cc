#include "ei/cpu/quantized.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ei/cpu/amx.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/quantized.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/quantized_vnni-inl.h"
#include "ei/cpu/tile-inl.h"
#include "ei/cpu/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// Columns that are unpacked at a time: one block of the formats with the largest ones.
constexpr int64_t kChunk = 256;

HWY_INLINE int32_t pair_at(const int16_t* from) {
  int32_t pair;
  std::memcpy(&pair, from, sizeof pair);
  return pair;
}

// 32 numbers at `at`. Bytes may alias whatever there is, so that they are gathered first.
HWY_INLINE void store_numbers(const int32_t* q, int64_t at, const IntegerRows& to) {
  using enum IntegerRows::Form;
  if (to.form == kNumbers) {
    for (int64_t k = 0; k < 32; ++k) to.q[at + k] = static_cast<int16_t>(q[k]);
    return;
  }
  int8_t high[32], low[32];
  for (int64_t k = 0; k < 32; ++k) {
    high[k] = static_cast<int8_t>((q[k] + 128) >> 8);
    low[k] = static_cast<int8_t>(q[k]);  // q - 256 high
  }
  if (to.form == kBytes) {
    std::memcpy(to.high + at, high, sizeof high);
    std::memcpy(to.low + at, low, sizeof low);
    return;
  }
  for (int64_t k = 0; k < 32; k += 4) {
    const int64_t four = at / 256 * 256 + k % 16 * 16 + (at + k) % 256 / 16 * 4;
    std::memcpy(to.high + four, high + k, 4);
    std::memcpy(to.low + four, low + k, 4);
  }
}

void quantize_rows(const Act& x, const int32_t* order, int64_t first, int64_t last,
                   const IntegerRows& to) {
  constexpr int32_t kMost = 127 * 256 + 127;
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), cols = to.cols;
  for (int64_t r = first; r < last; ++r) {
    const float* row = static_cast<const float*>(x.data) + r * cols;
    for (int64_t g = 0; g < cols / 32; ++g) {
      const float* from = row + g * 32;
      float ordered[32];
      if (order != nullptr) {
        for (int64_t k = 0; k < 32; ++k) ordered[k] = row[order[g * 32 + k]];
        from = ordered;
      }
      V32 most = hn::Zero(d), all = hn::Zero(d);
      for (int64_t k = 0; k < 32; k += lanes) {
        most = hn::Max(most, hn::Abs(hn::LoadU(d, from + k)));
        all = hn::Add(all, hn::LoadU(d, from + k));
      }
      const float top = hn::GetLane(hn::MaxOfLanes(d, most));
      const float nothing =
          0 * hn::GetLane(hn::SumOfLanes(d, all));  // NaN if a value is not finite
      const float scale = top / float{kMost} + nothing;
      const V32 inverse = hn::Set(d, top > 0 ? float{kMost} / top : 0);
      HWY_ALIGN int32_t q[32];
      float sums[2];
      for (int64_t half = 0; half < 2; ++half) {
        auto sum = hn::Zero(di);
        for (int64_t k = half * 16; k < half * 16 + 16; k += lanes) {
          // What is not finite becomes any number within the bounds.
          const auto numbers = hn::Clamp(hn::NearestInt(hn::Mul(hn::LoadU(d, from + k), inverse)),
                                         hn::Set(di, -kMost), hn::Set(di, kMost));
          hn::Store(numbers, di, q + k);
          sum = hn::Add(sum, numbers);
        }
        sums[half] = scale * static_cast<float>(hn::GetLane(hn::SumOfLanes(di, sum)));
        to.sums_16[(r * cols + g * 32) / 16 + half] = sums[half];
      }
      store_numbers(q, r * cols + g * 32, to);
      to.sums_32[r * cols / 32 + g] = sums[0] + sums[1];
      to.scale[r * cols / 32 + g] = scale;
    }
  }
}

// out[i][j] (+)= x[i] . weight[j] + bias[j] for n <= kN rows of x from `first` on and outputs
// [begin, end). Where n is less, the last row is multiplied again.
template <WeightFormat kFormat, int kN>
void dot_rows(const IntegerRows& x, int64_t first, int64_t n, const MatMul::Part& part,
              int64_t begin, int64_t end) {
  constexpr int64_t kSize = block_of(kFormat).weights, kGroup = group_of(kFormat);
  const hn::CappedTag<int32_t, 8> d;
  const hn::Rebind<float, decltype(d)> df;
  const int64_t step = 2 * static_cast<int64_t>(hn::Lanes(d)), cols = x.cols;
  const float* sums = kGroup == 32 ? x.sums_32 : x.sums_16;
  int64_t row[kN];  // where it begins
  for (int i = 0; i < kN; ++i) row[i] = (first + std::min<int64_t>(i, n - 1)) * cols;
  for (int64_t j = begin; j < end; ++j) {
    // Offsets are added up in every lane alike.
    hn::Vec<decltype(df)> sum[kN], offsets[kN];
    HWY_UNROLL(4)
    for (int i = 0; i < kN; ++i) sum[i] = offsets[i] = hn::Zero(df);
    const auto* block = reinterpret_cast<const uint8_t*>(part.weight.row(j));
    for (int64_t from = 0; from < cols; from += kSize, block += block_of(kFormat).bytes) {
      const Scales<kFormat> scales(block);
      HWY_UNROLL(16)
      for (int64_t g = 0; g < kSize / kGroup; ++g) {
        hn::Vec<decltype(d)> products[kN];
        HWY_UNROLL(4)
        for (int i = 0; i < kN; ++i) products[i] = hn::Zero(d);
        HWY_UNROLL(8)
        for (int64_t k = g * kGroup; k < (g + 1) * kGroup; k += step) {
          const auto w = load_weight_pairs<kFormat>(d, block, k);
          HWY_UNROLL(4)
          for (int i = 0; i < kN; ++i)
            products[i] = add_products(d, w, load_pairs(d, x.q + row[i] + from + k), products[i]);
        }
        const auto scale = scales.scale(df, g);
        HWY_UNROLL(4)
        for (int i = 0; i < kN; ++i) {
          const int64_t at = row[i] + from + g * kGroup;
          sum[i] = hn::MulAdd(hn::ConvertTo(df, products[i]),
                              hn::Mul(scale, hn::Set(df, x.scale[at / 32])), sum[i]);
          if constexpr (has_offset(kFormat))
            offsets[i] =
                hn::MulAdd(scales.offset(df, g), hn::Set(df, sums[at / kGroup]), offsets[i]);
        }
      }
    }
    for (int i = 0; i < n; ++i) {
      float total = hn::GetLane(hn::SumOfLanes(df, sum[i])) - hn::GetLane(offsets[i]);
      if (part.bias.data != nullptr) total += part.bias[j];
      float& to = static_cast<float*>(part.out.data)[(first + i) * part.out.cols + j];
      to = part.accumulate ? to + total : total;
    }
  }
}

void dot(const IntegerRows& x, int64_t n, const MatMul::Part& part, int64_t begin, int64_t end) {
  with_integers(part.weight.format, [&]<WeightFormat kFormat>() {
#if HWY_TARGET <= HWY_AVX3
    if (x.form != IntegerRows::Form::kNumbers) {
      if (n == 1) return dot_bytes<kFormat, 1>(x, 0, 1, part, begin, end);
      for (int64_t i = 0; i < n; i += 4)
        dot_bytes<kFormat, 4>(x, i, std::min<int64_t>(4, n - i), part, begin, end);
      return;
    }
#endif
    if (n == 1) return dot_rows<kFormat, 1>(x, 0, 1, part, begin, end);
    for (int64_t i = 0; i < n; i += 4)
      dot_rows<kFormat, 4>(x, i, std::min<int64_t>(4, n - i), part, begin, end);
  });
}

// Rows and outputs of the register block: a product needs a register beside its sum, so that there
// are fewer rows than of floats. Packed, the outputs stand side by side.
constexpr int64_t kBlockRows = HWY_TARGET <= HWY_AVX3 ? kRows : 4;
constexpr int64_t kWidth = kVectors * static_cast<int64_t>(hn::MaxLanes(F32()));

// kChunk columns of kWidth outputs: pairs of weights [kChunk / 2, kWidth], scales and offsets
// [kChunk / 16, kWidth].
struct Panel {
  HWY_ALIGN int32_t pairs[kChunk / 2 * kWidth];
  HWY_ALIGN float scale[kChunk / 16 * kWidth];
  HWY_ALIGN float offset[kChunk / 16 * kWidth];
};

// Weights of a row: whole numbers, and what makes numbers of them.
struct Chunk {
  HWY_ALIGN int16_t q[kChunk];
  float scale[kChunk / 16];
  float offset[kChunk / 16];
};

// Columns [from, from + depth) of a row.
template <WeightFormat kFormat>
void unpack(const char* row, int64_t from, int64_t depth, Chunk& to) {
  constexpr int64_t kSize = block_of(kFormat).weights, kGroups = kSize / group_of(kFormat);
  const hn::CappedTag<int32_t, 8> d;
  const int64_t step = 2 * static_cast<int64_t>(hn::Lanes(d));
  const auto* block = reinterpret_cast<const uint8_t*>(row) + row_bytes(kFormat, from);
  for (int64_t b = 0; b < depth / kSize; ++b, block += block_of(kFormat).bytes) {
    HWY_UNROLL(32)
    for (int64_t k = 0; k < kSize; k += step)
      store_pairs(d, load_weight_pairs<kFormat>(d, block, k), to.q + b * kSize + k);
    unpack_scales<kFormat>(block, to.scale + b * kGroups, to.offset + b * kGroups);
  }
}
using Unpack = void (*)(const char* row, int64_t from, int64_t depth, Chunk& to);
Unpack unpack_of(WeightFormat format) {
  return with_integers(format, []<WeightFormat kFormat>() -> Unpack { return unpack<kFormat>; });
}

// Zeros beyond n outputs.
void pack(const Weight& weight, int64_t begin, int64_t n, int64_t from, int64_t depth, Panel& to) {
  constexpr int64_t kAtOnce = HWY_TARGET == HWY_SCALAR ? 1 : 4;
  const Unpack unpack_chunk = unpack_of(weight.format);
  const int64_t n_groups = depth / group_of(weight.format);
  Chunk rows[kAtOnce] = {};
  for (int64_t j = 0; j < kWidth; j += kAtOnce) {
    for (int64_t u = 0; u < kAtOnce; ++u) {
      if (j + u < n) {
        unpack_chunk(weight.row(begin + j + u), from, depth, rows[u]);
      } else {
        rows[u] = {};
      }
      for (int64_t g = 0; g < n_groups; ++g) {
        to.scale[g * kWidth + j + u] = rows[u].scale[g];
        to.offset[g * kWidth + j + u] = rows[u].offset[g];  // means nothing without offsets
      }
    }
#if HWY_TARGET == HWY_SCALAR
    for (int64_t p = 0; p < depth / 2; ++p) to.pairs[p * kWidth + j] = pair_at(rows[0].q + 2 * p);
#else
    const hn::FixedTag<int32_t, 4> d;
    for (int64_t p = 0; p < depth / 2; p += 4) {
      const auto four = [&](int u) HWY_ATTR { return load_pairs(d, rows[u].q + 2 * p); };
      store_columns<int32_t>(four(0), four(1), four(2), four(3), kWidth, to.pairs + p * kWidth + j);
    }
#endif
  }
}

// out += x w for kM rows of x from `row` on and a panel, over `depth` columns from `from` on.
template <int64_t kGroup, bool kOffset, int64_t kM>
HWY_INLINE void multiply_panel(const IntegerRows& x, int64_t row, int64_t from, int64_t depth,
                               const Panel& w, float* HWY_RESTRICT out, int64_t out_stride) {
  const hn::RebindToSigned<F32> d;
  const F32 df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), cols = x.cols;
  const int16_t* q = x.q + row * cols + from;
  const float* scale = x.scale + (row * cols + from) / 32;
  const float* sums = (kGroup == 32 ? x.sums_32 : x.sums_16) + (row * cols + from) / kGroup;
  for (int64_t g = 0; g < depth / kGroup; ++g) {
    hn::Vec<decltype(d)> sum[kM][kVectors];
    HWY_UNROLL(6)
    for (int64_t i = 0; i < kM; ++i) HWY_UNROLL(4)
    for (int64_t v = 0; v < kVectors; ++v) sum[i][v] = hn::Zero(d);
    for (int64_t p = g * kGroup / 2; p < (g + 1) * kGroup / 2; ++p) {
      hn::Vec<decltype(d)> pairs[kVectors];
      HWY_UNROLL(4)
      for (int64_t v = 0; v < kVectors; ++v)
        pairs[v] = hn::Load(d, w.pairs + p * kWidth + v * lanes);
      HWY_UNROLL(6)
      for (int64_t i = 0; i < kM; ++i) {
        const auto pair = hn::Set(d, pair_at(q + i * cols + 2 * p));
        HWY_UNROLL(4)
        for (int64_t v = 0; v < kVectors; ++v)
          sum[i][v] = add_products(d, pairs[v], pair, sum[i][v]);
      }
    }
    HWY_UNROLL(4)
    for (int64_t v = 0; v < kVectors; ++v) {
      const V32 w_scale = hn::Load(df, w.scale + g * kWidth + v * lanes);
      HWY_UNROLL(6)
      for (int64_t i = 0; i < kM; ++i) {
        float* to = out + i * out_stride + v * lanes;
        const V32 both = hn::Mul(w_scale, hn::Set(df, scale[i * (cols / 32) + g * kGroup / 32]));
        V32 total = hn::MulAdd(hn::ConvertTo(df, sum[i][v]), both, hn::LoadU(df, to));
        if constexpr (kOffset)
          total = hn::NegMulAdd(hn::Load(df, w.offset + g * kWidth + v * lanes),
                                hn::Set(df, sums[i * (cols / kGroup) + g]), total);
        hn::StoreU(total, df, to);
      }
    }
  }
}

template <int64_t kGroup, bool kOffset>
void multiply_rows(const IntegerRows& x, int64_t row, int64_t m, int64_t from, int64_t depth,
                   const Panel& w, float* out, int64_t out_stride) {
  const auto go = [&]<int64_t kM>() {
    multiply_panel<kGroup, kOffset, kM>(x, row, from, depth, w, out, out_stride);
  };
  switch (m) {
    case 1:
      return go.template operator()<1>();
    case 2:
      return go.template operator()<2>();
    case 3:
      return go.template operator()<3>();
    case 4:
      return go.template operator()<4>();
    case 5:
      return go.template operator()<std::min<int64_t>(5, kBlockRows)>();
    default:
      return go.template operator()<kBlockRows>();
  }
}

template <class F>
void with_groups(WeightFormat format, const F& f) {
  const bool offset = has_offset(format);
  if (group_of(format) == 32) {
    offset ? f.template operator()<32, true>() : f.template operator()<32, false>();
  } else {
    offset ? f.template operator()<16, true>() : f.template operator()<16, false>();
  }
}

void multiply(const IntegerRows& x, const MatMul::Part& part, int64_t first, int64_t last,
              int64_t begin, int64_t end, void* memory) {
  auto* panels = static_cast<Panel*>(memory);
  const int64_t stride = part.out.cols;
  auto* out = static_cast<float*>(part.out.data);
  for (int64_t r = first; r < last; ++r)
    for (int64_t j = begin; j < end; ++j) {
      const float before = part.accumulate ? out[r * stride + j] : 0;
      out[r * stride + j] = part.bias.data == nullptr ? before : before + part.bias[j];
    }
  with_groups(part.weight.format, [&]<int64_t kGroup, bool kOffset>() {
    for (int64_t from = 0; from < x.cols; from += kChunk) {
      const int64_t depth = std::min(kChunk, x.cols - from);
      for (int64_t j = begin; j < end; j += kWidth)
        pack(part.weight, j, std::min(kWidth, end - j), from, depth, panels[(j - begin) / kWidth]);
      for (int64_t strip = first; strip < last; strip += kStrip)
        for (int64_t j = begin; j < end; j += kWidth)
          for (int64_t r = strip; r < std::min(strip + kStrip, last); r += kBlockRows) {
            const int64_t m = std::min(kBlockRows, last - r), n = std::min(kWidth, end - j);
            float *to = out + r * stride + j, tile[kBlockRows * kWidth];
            const Panel& panel = panels[(j - begin) / kWidth];
            if (n == kWidth) {
              multiply_rows<kGroup, kOffset>(x, r, m, from, depth, panel, to, stride);
              continue;
            }
            for (int64_t i = 0; i < m; ++i) std::copy_n(to + i * stride, n, tile + i * kWidth);
            multiply_rows<kGroup, kOffset>(x, r, m, from, depth, panel, tile, kWidth);
            for (int64_t i = 0; i < m; ++i) std::copy_n(tile + i * kWidth, n, to + i * stride);
          }
    }
  });
}

IntegerRows::Form form_of_few(int64_t cols, WeightFormat format) {
  using enum IntegerRows::Form;
  if (HWY_TARGET > HWY_AVX3 || !has_vnni() || cols % 64 != 0) return kNumbers;
  return by_fours(format) ? kBytesByFours : kBytes;
}

int64_t panel_bytes(int64_t outputs) {
  return (outputs + kWidth - 1) / kWidth * int64_t{sizeof(Panel)};
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(quantize_rows);
HWY_EXPORT(dot);
HWY_EXPORT(multiply);
HWY_EXPORT(form_of_few);
HWY_EXPORT(panel_bytes);

}  // namespace

IntegerRows::IntegerRows(void* memory, int64_t rows, int64_t cols, Form form)
    : cols(cols), form(form) {
  const int64_t n = rows * cols;
  high = static_cast<int8_t*>(memory);
  low = high + n;
  q = static_cast<int16_t*>(memory);
  scale = reinterpret_cast<float*>(q + n);
  sums_32 = scale + n / 32;
  sums_16 = sums_32 + n / 32;
}

IntegerRows::Form form_of_few(int64_t cols, WeightFormat format) {
  return HWY_DYNAMIC_DISPATCH(form_of_few)(cols, format);
}

void quantize_rows(const Act& x, const int32_t* order, int64_t first, int64_t last,
                   const IntegerRows& to) {
  HWY_DYNAMIC_DISPATCH(quantize_rows)(x, order, first, last, to);
}

void quantized_dot(const IntegerRows& x, int64_t n, const MatMul::Part& part, int64_t begin,
                   int64_t end) {
  HWY_DYNAMIC_DISPATCH(dot)(x, n, part, begin, end);
}

void quantized_multiply(const IntegerRows& x, const MatMul::Part& part, int64_t first, int64_t last,
                        int64_t begin, int64_t end, void* memory) {
  HWY_DYNAMIC_DISPATCH(multiply)(x, part, first, last, begin, end, memory);
}

int64_t packed_bytes(int64_t outputs) { return HWY_DYNAMIC_DISPATCH(panel_bytes)(outputs); }

}  // namespace ei::cpu
#endif
