#include "ei/ops/matmul.h"

#include <dnnl.h>
#include <omp.h>

#include <algorithm>

#include "ei/base/fail.h"
#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/numbers.h"
#include "ei/cpu/parallel.h"

// One pass of foreach_target per instruction set compiles everything up to HWY_ONCE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ei/cpu/matmul.cc"
#include <hwy/foreach_target.h>

#include "ei/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ei::cpu::HWY_NAMESPACE {

template <DType kType>
HWY_INLINE V32 load_weights(const void* row, int64_t i) {
  const F32 d;
  if constexpr (kType == DType::kF32) {
    return hn::LoadU(d, static_cast<const float*>(row) + i);
  } else {
    const hn::Rebind<uint16_t, F32> dh;
    const auto bits = hn::LoadU(dh, static_cast<const uint16_t*>(row) + i);
    if constexpr (kType == DType::kBF16) {
      const hn::RebindToUnsigned<F32> du;
      return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
    } else {
      return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, F32>(), bits));
    }
  }
}

// out[i][j] (+)= x[i] . weight[j] + bias[j] for kN rows of x and outputs [begin, end): every weight
// is read once. Four sums for each pair at most, so that the multiply-adds overlap.
template <DType kType, int kN>
void dot_rows(const MatMul& op, const MatMul::Part& part, int64_t begin, int64_t end) {
  constexpr int kSums = kN == 1 ? 4 : kN <= 4 ? 2 : 1;
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), depth = op.x.cols;
  const auto* x = static_cast<const float*>(op.x.data);
  auto* out = static_cast<float*>(part.out.data);
  const auto* weights = static_cast<const char*>(part.weight.data);
  for (int64_t j = begin; j < end; ++j) {
    const void* row = weights + j * depth * dtype_bytes(kType);
    V32 sum[kN][kSums];
    HWY_UNROLL(8)
    for (int i = 0; i < kN; ++i) HWY_UNROLL(4)
    for (int u = 0; u < kSums; ++u) sum[i][u] = hn::Zero(d);
    int64_t k = 0;
    for (; k + kSums * lanes <= depth; k += kSums * lanes) {
      HWY_UNROLL(4)
      for (int u = 0; u < kSums; ++u) {
        const V32 w = load_weights<kType>(row, k + u * lanes);
        HWY_UNROLL(8)
        for (int i = 0; i < kN; ++i)
          sum[i][u] = hn::MulAdd(w, hn::LoadU(d, x + i * depth + k + u * lanes), sum[i][u]);
      }
    }
    HWY_UNROLL(8)
    for (int i = 0; i < kN; ++i) {
      for (int u = 1; u < kSums; ++u) sum[i][0] = hn::Add(sum[i][0], sum[i][u]);
      float total = hn::GetLane(hn::SumOfLanes(d, sum[i][0]));
      for (int64_t c = k; c < depth; ++c) total += x[i * depth + c] * load(row, kType, c);
      if (part.bias.data != nullptr) total += part.bias[j];
      float& to = out[i * part.out.cols + j];
      to = part.accumulate ? to + total : total;
    }
  }
}

template <DType kType>
void dot_rows(const MatMul& op, const MatMul::Part& part, int64_t begin, int64_t end) {
  switch (op.x.rows) {
    case 1:
      return dot_rows<kType, 1>(op, part, begin, end);
    case 2:
      return dot_rows<kType, 2>(op, part, begin, end);
    case 3:
      return dot_rows<kType, 3>(op, part, begin, end);
    case 4:
      return dot_rows<kType, 4>(op, part, begin, end);
    case 5:
      return dot_rows<kType, 5>(op, part, begin, end);
    case 6:
      return dot_rows<kType, 6>(op, part, begin, end);
    case 7:
      return dot_rows<kType, 7>(op, part, begin, end);
    default:
      return dot_rows<kType, 8>(op, part, begin, end);
  }
}

void dot_panel(const MatMul& op, const MatMul::Part& part, int64_t begin, int64_t end) {
  switch (part.weight.dtype) {
    case DType::kBF16:
      return dot_rows<DType::kBF16>(op, part, begin, end);
    case DType::kF16:
      return dot_rows<DType::kF16>(op, part, begin, end);
    case DType::kF32:
      return dot_rows<DType::kF32>(op, part, begin, end);
  }
}

void widen_rows(const Weight& weight, int64_t begin, int64_t end, float* HWY_RESTRICT to) {
  const int64_t n = (end - begin) * weight.cols;
  const char* from =
      static_cast<const char*>(weight.data) + begin * weight.cols * dtype_bytes(weight.dtype);
  if (weight.dtype == DType::kF16) {
    for (int64_t i = 0; i < n; ++i) to[i] = load(from, DType::kF16, i);
  } else {
    widen(from, weight.dtype, n, to);
  }
}

}  // namespace ei::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::cpu {
namespace {

HWY_EXPORT(dot_panel);
HWY_EXPORT(widen_rows);

// So few rows are bound by reading the weights, and go through our own dot products.
constexpr int64_t kFewRows = 8;

// Weights a thread works on at a time: in float they fit L2 beside the rows they meet.
constexpr int64_t kPanelWeights = 128 * 1024;

// The panels of all parts, of `step` outputs each, in one row.
struct Panels {
  const MatMul& op;
  int64_t step;

  struct Panel {
    const MatMul::Part& part;
    int64_t begin, end;  // outputs
  };
  static int64_t outputs(const MatMul::Part& part) {
    return part.weight.data == nullptr ? 0 : part.weight.rows;
  }
  int64_t size() const {
    int64_t n = 0;
    for (const MatMul::Part& part : op.parts) n += (outputs(part) + step - 1) / step;
    return n;
  }
  Panel operator[](int64_t i) const {
    size_t p = 0;
    for (int64_t n; i >= (n = (outputs(op.parts[p]) + step - 1) / step); ++p) i -= n;
    return {op.parts[p], i * step, std::min((i + 1) * step, outputs(op.parts[p]))};
  }
};

}  // namespace

// Work is split over panels of outputs of all parts; what a panel computes does not depend on the
// number of threads. Many rows: a thread widens its panel into L2 and oneDNN multiplies, on that
// thread alone.
void CpuBackend::run(const MatMul& op) {
  check(op);
  const int64_t n = op.x.rows, depth = op.x.cols;
  if (n == 0) return;
  const int64_t step = std::clamp<int64_t>(kPanelWeights / std::max<int64_t>(1, depth), 16, 128);
  const Panels panels = {op, step};
  if (n <= kFewRows) {
    parallel_for(n_threads_, panels.size(), [&](int64_t i) {
      const auto& [part, begin, end] = panels[i];
      HWY_DYNAMIC_DISPATCH(dot_panel)(op, part, begin, end);
    });
    return;
  }

  const int64_t per_thread = (step * depth + 15) / 16 * 16;
  float* scratch = scratch_.get<float>(n_threads_ * per_thread);
  bool ok = true;
  parallel_for(n_threads_, panels.size(), [&](int64_t i, int thread) {
    omp_set_num_threads(1);  // oneDNN's, in this task
    const auto [part, begin, end] = panels[i];
    const float* weights = static_cast<const float*>(part.weight.data) + begin * depth;
    if (part.weight.dtype != DType::kF32) {
      float* panel = scratch + thread * per_thread;
      HWY_DYNAMIC_DISPATCH(widen_rows)(part.weight, begin, end, panel);
      weights = panel;
    }
    const View<float, 2> out = rows_of(part.out);
    if (part.bias.data != nullptr)
      for (int64_t r = 0; r < n; ++r)
        for (int64_t j = begin; j < end; ++j)
          out[r][j] = part.accumulate ? out[r][j] + part.bias[j] : part.bias[j];
    const float beta = part.accumulate || part.bias.data != nullptr ? 1.0f : 0.0f;
    const auto* x = static_cast<const float*>(op.x.data);
    if (dnnl_sgemm('N', 'T', n, end - begin, depth, 1.0f, x, depth, weights, depth, beta,
                   out.data + begin, part.out.cols) != dnnl_success) {
#pragma omp atomic write
      ok = false;
    }
  });
  require(ok, "matmul: oneDNN failed on {} rows by {} inputs", n, depth);
}

}  // namespace ei::cpu
#endif
