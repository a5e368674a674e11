#include "ei/ops/matmul.h"

#include <hwy/cache_control.h>

#include <algorithm>
#include <bit>

#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/panels.h"
#include "ei/cpu/parallel.h"
#include "ei/cpu/quantized.h"
#include "ei/ops/weight_blocks.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/matmul.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

// Inputs a block of packed weights is deep.
constexpr int64_t kDepth = 256;

// As many weights of a row, from the i-th on, as D has lanes; in FP8 within a block.
template <WeightFormat kFormat, class D>
HWY_INLINE hn::Vec<D> load_weights(D d, const char* row, int64_t i) {
  const hn::Rebind<hwy::float16_t, D> dh;
  const char* at = row + row_bytes(kFormat, i);
  if constexpr (kFormat == WeightFormat::kF32) {
    return hn::LoadU(d, reinterpret_cast<const float*>(at));
  } else if constexpr (kFormat == WeightFormat::kFP8) {
    const hn::Rebind<int8_t, D> d8;
    const hn::Rebind<int16_t, D> d16;
    float scale;
    std::memcpy(&scale, at, sizeof scale);
    // The sign, and exponent and mantissa where a half has them; its exponent is 8 less.
    const auto* numbers = reinterpret_cast<const int8_t*>(at + sizeof scale) + i % 32;
    const auto bits = hn::ShiftLeft<7>(hn::PromoteTo(d16, hn::LoadU(d8, numbers)));
    const auto half = hn::And(bits, hn::Set(d16, static_cast<int16_t>(0xBFFF)));
    return hn::Mul(hn::PromoteTo(d, hn::BitCast(dh, half)), hn::Set(d, scale * 256));
  } else {
    const hn::Rebind<uint16_t, D> d16;
    const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(at));
    if constexpr (kFormat == WeightFormat::kBF16) {
      const hn::RebindToUnsigned<D> du;
      return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
    } else {
      return hn::PromoteTo(d, hn::BitCast(dh, bits));
    }
  }
}

template <WeightFormat kFormat>
HWY_INLINE float load_weight(const char* row, int64_t i) {
  return hn::GetLane(load_weights<kFormat>(hn::CappedTag<float, 1>(), row, i));
}

// out[i][j] (+)= x[i] . weight[j] + bias[j] for kN rows of x and the kOutputs outputs from j on:
// every weight is read once, from as many rows at a time. The sums of a pair do not depend on
// kOutputs.
template <WeightFormat kFormat, int kN, int kOutputs>
HWY_INLINE void dot_outputs(const MatMul& op, const MatMul::Part& part, int64_t j) {
  constexpr int kSums = kN == 1 ? 2 : 1;  // with kOutputs enough for the multiply-adds to overlap
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), depth = op.x.cols;
  const int64_t bytes = row_bytes(kFormat, depth);
  const auto* x = static_cast<const float*>(op.x.data);
  const char* rows = part.weight.row(j);
  V32 sum[kN][kOutputs][kSums];
  HWY_UNROLL(8)
  for (int i = 0; i < kN; ++i) {
    HWY_UNROLL(4)
    for (int o = 0; o < kOutputs; ++o) {
      HWY_UNROLL(2)
      for (int u = 0; u < kSums; ++u) sum[i][o][u] = hn::Zero(d);
    }
  }
  int64_t k = 0;
  for (; k + kSums * lanes <= depth; k += kSums * lanes) {
    HWY_UNROLL(4)
    for (int o = 0; o < kOutputs; ++o) {
      const char* row = rows + o * bytes;
      // The same place in the outputs that come next: memory is read on while these are summed up.
      hwy::Prefetch(row + kOutputs * bytes + row_bytes(kFormat, k));
      HWY_UNROLL(2)
      for (int u = 0; u < kSums; ++u) {
        const V32 w = load_weights<kFormat>(d, row, k + u * lanes);
        HWY_UNROLL(8)
        for (int i = 0; i < kN; ++i)
          sum[i][o][u] = hn::MulAdd(w, hn::LoadU(d, x + i * depth + k + u * lanes), sum[i][o][u]);
      }
    }
  }
  HWY_UNROLL(8)
  for (int i = 0; i < kN; ++i) {
    HWY_UNROLL(4)
    for (int o = 0; o < kOutputs; ++o) {
      if constexpr (kSums == 2) sum[i][o][0] = hn::Add(sum[i][o][0], sum[i][o][1]);
      float total = hn::GetLane(hn::SumOfLanes(d, sum[i][o][0]));
      for (int64_t c = k; c < depth; ++c)
        total += x[i * depth + c] * load_weight<kFormat>(rows + o * bytes, c);
      if (part.bias.data != nullptr) total += part.bias[j + o];
      float& to = static_cast<float*>(part.out.data)[i * part.out.cols + j + o];
      to = part.accumulate ? to + total : total;
    }
  }
}

// The same for outputs [begin, end).
template <WeightFormat kFormat, int kN>
void dot_rows(const MatMul& op, const MatMul::Part& part, int64_t begin, int64_t end) {
  constexpr int kOutputs = kN <= 2 ? 4 : kN <= 4 ? 2 : 1;  // the sums stay in registers
  int64_t j = begin;
  for (; j + kOutputs <= end; j += kOutputs) dot_outputs<kFormat, kN, kOutputs>(op, part, j);
  for (; j < end; ++j) dot_outputs<kFormat, kN, 1>(op, part, j);
}

template <WeightFormat kFormat>
void dot_rows(const MatMul& op, const MatMul::Part& part, int64_t begin, int64_t end) {
  switch (op.x.rows) {
    case 1:
      return dot_rows<kFormat, 1>(op, part, begin, end);
    case 2:
      return dot_rows<kFormat, 2>(op, part, begin, end);
    case 3:
      return dot_rows<kFormat, 3>(op, part, begin, end);
    case 4:
      return dot_rows<kFormat, 4>(op, part, begin, end);
    case 5:
      return dot_rows<kFormat, 5>(op, part, begin, end);
    case 6:
      return dot_rows<kFormat, 6>(op, part, begin, end);
    case 7:
      return dot_rows<kFormat, 7>(op, part, begin, end);
    default:
      return dot_rows<kFormat, 8>(op, part, begin, end);
  }
}

// f.template operator()<kFormat>() for a format that is not an integer one.
template <class F>
void with_floats(WeightFormat format, const F& f) {
  switch (format) {
    case WeightFormat::kBF16:
      return f.template operator()<WeightFormat::kBF16>();
    case WeightFormat::kF16:
      return f.template operator()<WeightFormat::kF16>();
    case WeightFormat::kFP8:
      return f.template operator()<WeightFormat::kFP8>();
    default:
      return f.template operator()<WeightFormat::kF32>();
  }
}

void dot_panel(const MatMul& op, const MatMul::Part& part, int64_t begin, int64_t end) {
  with_floats(part.weight.format,
              [&]<WeightFormat kFormat>() { dot_rows<kFormat>(op, part, begin, end); });
}

// Outputs of the register block.
constexpr int64_t kWidth = kVectors * static_cast<int64_t>(hn::MaxLanes(F32()));

// Inputs [from, from + depth) of n <= kWidth weight rows from `begin` on, as floats side by side:
// to[k][j], zeros beyond n.
template <WeightFormat kFormat>
void pack_weights(const Weight& weight, int64_t begin, int64_t n, int64_t from, int64_t depth,
                  float* HWY_RESTRICT to) {
  const auto row = [&](int64_t j) { return weight.row(begin + j) + row_bytes(kFormat, from); };
  int64_t j = 0;
#if HWY_TARGET != HWY_SCALAR  // four by four
  const hn::FixedTag<float, 4> d;
  for (; j + 4 <= n; j += 4) {
    const char* rows[] = {row(j), row(j + 1), row(j + 2), row(j + 3)};
    int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
      const auto four = [&](int u) HWY_ATTR { return load_weights<kFormat>(d, rows[u], k); };
      store_columns<float>(four(0), four(1), four(2), four(3), kWidth, to + k * kWidth + j);
    }
    for (; k < depth; ++k)
      for (int64_t u = 0; u < 4; ++u) to[k * kWidth + j + u] = load_weight<kFormat>(rows[u], k);
  }
#endif
  for (; j < kWidth; ++j)
    for (int64_t k = 0; k < depth; ++k)
      to[k * kWidth + j] = j < n ? load_weight<kFormat>(row(j), k) : 0;
}

void pack_weights(const Weight& weight, int64_t begin, int64_t n, int64_t from, int64_t depth,
                  float* to) {
  with_floats(weight.format, [&]<WeightFormat kFormat>() {
    pack_weights<kFormat>(weight, begin, n, from, depth, to);
  });
}

// m <= kRows rows of x, `depth` of their inputs, by n packed outputs.
template <bool kAdd>
void multiply_rows(int64_t m, int64_t n, int64_t depth, const float* x, int64_t x_stride,
                   const float* packed, float* out, int64_t out_stride) {
  constexpr float kOnes[kRows] = {1, 1, 1, 1, 1, 1};
  const int64_t full = n / kWidth * kWidth, rest = n - full;
  product<kAdd>(m, full, depth, x, x_stride, packed, depth, out, out_stride, kOnes);
  if (rest == 0) return;
  float tile[kRows * kWidth];
  out += full;
  for (int64_t i = 0; kAdd && i < m; ++i)
    std::copy_n(out + i * out_stride, rest, tile + i * kWidth);
  product<kAdd>(m, kWidth, depth, x, x_stride, packed + full * depth, depth, tile, kWidth, kOnes);
  for (int64_t i = 0; i < m; ++i) std::copy_n(tile + i * kWidth, rest, out + i * out_stride);
}

// Rows [first, last) of x by outputs [begin, end) of a part. The weights of kDepth inputs at a time
// are packed into L2, where every kRows rows of x, themselves in L1, meet them.
void multiply(const MatMul& op, const MatMul::Part& part, int64_t first, int64_t last,
              int64_t begin, int64_t end, float* packed) {
  const View<float, 2> x = rows_of(op.x), out = rows_of(part.out);
  const int64_t x_stride = op.x.cols, out_stride = part.out.cols;
  bool add = part.accumulate;
  if (part.bias.data != nullptr) {
    for (int64_t r = first; r < last; ++r)
      for (int64_t j = begin; j < end; ++j)
        out[r][j] = add ? out[r][j] + part.bias[j] : part.bias[j];
    add = true;
  }
  for (int64_t from = 0; from < op.x.cols; from += kDepth) {
    const int64_t depth = std::min(kDepth, op.x.cols - from);
    for (int64_t j = begin; j < end; j += kWidth)
      pack_weights(part.weight, j, std::min(kWidth, end - j), from, depth,
                   packed + (j - begin) * depth);
    for (int64_t r = first; r < last; r += kRows) {
      const int64_t m = std::min(kRows, last - r);
      const float* rows = x[r].data + from;
      float* to = out[r].data + begin;
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < end - begin; j += 16) hwy::Prefetch(to + i * out_stride + j);
      if (add) {
        multiply_rows<true>(m, end - begin, depth, rows, x_stride, packed, to, out_stride);
      } else {
        multiply_rows<false>(m, end - begin, depth, rows, x_stride, packed, to, out_stride);
      }
    }
    add = true;
  }
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(dot_panel);
HWY_EXPORT(multiply);

// So few rows are bound by reading the weights, and go through dot products.
constexpr int64_t kFewRows = 8;

// Outputs and rows of x that a thread takes at a time: of both, 128 and 258 KiB are in use, in L2.
constexpr int64_t kPanelOutputs = 128;
constexpr int64_t kPanelRows = 258;
constexpr int64_t kPackedWeights = kPanelOutputs * HWY_NAMESPACE::kDepth;

bool has_integers(const MatMul::Part& part) {
  return part.weight.data != nullptr && is_integer(part.weight.format);
}

// Outputs [begin, end) of a part as a part of their own, its weights floats in the order of x:
// [end - begin, cols] in `memory`, which has room for a row more.
MatMul::Part in_floats(const MatMul::Part& part, int64_t begin, int64_t end, float* memory) {
  const Weight& weight = part.weight;
  const int64_t n = end - begin, cols = weight.cols;
  for (int64_t j = 0; j < n; ++j) {
    float *to = memory + j * cols, *row = weight.order == nullptr ? to : memory + n * cols;
    dequantize(weight.format, weight.row(begin + j), cols, row);
    for (int64_t k = 0; weight.order != nullptr && k < cols; ++k) to[weight.order[k]] = row[k];
  }
  MatMul::Part floats = part;
  floats.weight = {memory, WeightFormat::kF32, n, cols};
  if (part.bias.data != nullptr) floats.bias.data += begin;
  floats.out.data = static_cast<float*>(part.out.data) + begin;
  return floats;
}

}  // namespace

void CpuBackend::run_in_floats(const MatMul& op) {
  const int64_t n = op.x.rows, cols = op.x.cols;
  const Panels panels = {op, kPanelOutputs};
  const int64_t room = kPackedWeights + (kPanelOutputs + 1) * cols;
  float* memory = scratch_.get<float>(n_threads_ * room);
  parallel_for(n_threads_, panels.size(), [&](int64_t i, int thread) {
    const auto& [whole, begin, end] = panels[i];
    float* packed = memory + thread * room;
    const MatMul::Part part = in_floats(whole, begin, end, packed + kPackedWeights);
    if (n <= kFewRows) return HWY_DYNAMIC_DISPATCH(dot_panel)(op, part, 0, end - begin);
    for (int64_t first = 0; first < n; first += kPanelRows) HWY_DYNAMIC_DISPATCH(multiply)
    (op, part, first, std::min(first + kPanelRows, n), 0, end - begin, packed);
  });
}

std::array<IntegerRows, 3> CpuBackend::integer_rows(const MatMul& op) {
  const int64_t n = op.x.rows, cols = op.x.cols;
  const int64_t bytes = (IntegerRows::bytes(n, cols) + 63) / 64 * 64;
  std::array<IntegerRows, 3> rows;
  const auto wanted = [&](size_t p) { return has_integers(op.parts[p]); };
  const auto form_of = [&](size_t p) {
    return n <= kFewRows ? form_of_few(cols, op.parts[p].weight.format)
                         : IntegerRows::Form::kNumbers;
  };
  const auto alike = [&](size_t p, size_t other) {
    return wanted(p) && wanted(other) && form_of(p) == form_of(other) &&
           op.parts[p].weight.order == op.parts[other].weight.order;
  };
  const auto first_alike = [&](size_t p) {
    size_t first = 0;
    while (!alike(first, p)) ++first;
    return first;
  };
  int64_t n_kinds = 0;
  for (size_t p = 0; p < rows.size(); ++p) n_kinds += wanted(p) && first_alike(p) == p;
  if (n_kinds == 0) return rows;
  char* memory = integers_.get<char>(n_kinds * bytes);
  for (size_t p = 0; p < rows.size(); ++p) {
    if (!wanted(p)) continue;
    if (const size_t first = first_alike(p); first != p) {
      rows[p] = rows[first];
      continue;
    }
    rows[p] = {memory, n, cols, form_of(p)};
    memory += bytes;
    const int64_t at_once = std::clamp<int64_t>(4096 / std::max<int64_t>(1, cols), 1, 8);
    parallel_for(n_threads_, (n + at_once - 1) / at_once, [&](int64_t i) {
      quantize_rows(op.x, op.parts[p].weight.order, i * at_once, std::min(n, (i + 1) * at_once),
                    rows[p]);
    });
  }
  return rows;
}

// Where parts differ in which kernels take them, those of the tile unit and the others are products
// of their own.
void CpuBackend::run(const MatMul& op) {
  check(op);
  const int64_t n = op.x.rows;
  if (n == 0) return;
  MatMul tiles = op, others = op;
  bool has_tiles = false, has_others = false;
  for (size_t p = 0; p < op.parts.size(); ++p) {
    const MatMul::Part& part = op.parts[p];
    const bool in_tiles = n <= kFewRows ? part.weight.tiled : fits_tiles(part, n);
    (in_tiles ? others : tiles).parts[p].weight.data = nullptr;
    if (part.weight.data != nullptr) (in_tiles ? has_tiles : has_others) = true;
  }
  // A panel of a few rows' is about 256 KiB of bf16: threads seldom meet, and end together.
  const auto step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(
      std::clamp<int64_t>(128 * 1024 / std::max<int64_t>(1, op.x.cols), 32, 128))));
  if (has_tiles && n <= kFewRows) run_tiled_dot(tiles, step);
  if (has_tiles && n > kFewRows) run_tiles(tiles);
  if (has_others) run_vectors(others, step);
}

// Work is split over panels of outputs of all parts and, when there are many, over rows. What is
// added up to an output, and in which order, does not depend on the number of threads.
void CpuBackend::run_vectors(const MatMul& op, int64_t step) {
  const int64_t n = op.x.rows;
  if (math_ == Math::kF32 && std::any_of(op.parts.begin(), op.parts.end(), has_integers))
    return run_in_floats(op);
  const std::array<IntegerRows, 3> integers = integer_rows(op);
  const auto integers_of = [&](const MatMul::Part& part) -> const IntegerRows& {
    return integers[static_cast<size_t>(&part - op.parts.data())];
  };
  if (n <= kFewRows) {
    const Panels panels = {op, step};
    parallel_for(n_threads_, panels.size(), [&](int64_t i) {
      const auto& [part, begin, end] = panels[i];
      if (is_integer(part.weight.format))
        return quantized_dot(integers_of(part), n, part, begin, end);
      HWY_DYNAMIC_DISPATCH(dot_panel)(op, part, begin, end);
    });
    return;
  }
  const Panels panels = {op, kPanelOutputs};
  const int64_t n_blocks = (n + kPanelRows - 1) / kPanelRows;
  const int64_t packed_size =
      std::max(kPackedWeights * int64_t{sizeof(float)}, packed_bytes(kPanelOutputs));
  char* packed = scratch_.get<char>(n_threads_ * packed_size);
  parallel_for(n_threads_, panels.size() * n_blocks, [&](int64_t i, int thread) {
    const auto& [part, begin, end] = panels[i / n_blocks];
    const int64_t first = i % n_blocks * kPanelRows, last = std::min(first + kPanelRows, n);
    char* memory = packed + thread * packed_size;
    if (is_integer(part.weight.format))
      return quantized_multiply(integers_of(part), part, first, last, begin, end, memory);
    HWY_DYNAMIC_DISPATCH(multiply)
    (op, part, first, last, begin, end, reinterpret_cast<float*>(memory));
  });
}

}  // namespace ei::cpu
#endif
