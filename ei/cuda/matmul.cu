#include <algorithm>
#include <array>
#include <tuple>

#include "ei/base/error.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/fp8.h"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/quantized.h"

namespace ei::cuda {
namespace {

void check_cublas(cublasStatus_t code, const char* what) {
  if (code != CUBLAS_STATUS_SUCCESS)
    throw Error(std::string("MatMul: ") + what + ": " + cublasLtGetStatusString(code));
}
#define EI_CUBLAS(expr) check_cublas((expr), #expr)

// Owned descriptors of cuBLASLt.
struct Descriptors {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, x = nullptr, out = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;

  ~Descriptors() {
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatrixLayoutDestroy(out);
    cublasLtMatrixLayoutDestroy(x);
    cublasLtMatrixLayoutDestroy(weight);
    cublasLtMatmulDescDestroy(product);
  }
};

__global__ void round_bias(const float* from, bf16* to, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) to[i] = __float2bfloat16_rn(from[i]);
}

// Few rows of x: bound by reading the weights once. A warp computes kRows outputs for all rows of
// x, its lanes striding along k in steps of 8 numbers.
constexpr int kRows = 2, kWarps = 8, kMaxFewRows = 2;

template <int kN>
__global__ void __launch_bounds__(32 * kWarps) multiply_few(const __grid_constant__ FewRows p) {
  const int which = p.part_of(static_cast<int>(blockIdx.x));
  const FewRows::Part& part = p.parts[which];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int first = ((static_cast<int>(blockIdx.x) - p.first_block[which]) * kWarps + warp) * kRows;
  const int n_rows = min(kRows, part.m - first);
  if (n_rows <= 0) return;

  float sums[kRows][kN] = {};
  const bf16* weight[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    weight[r] = static_cast<const bf16*>(part.weight) + int64_t{first + min(r, n_rows - 1)} * p.k;
  const int in_eights = p.k % 8 == 0 ? p.k : 0;  // rows are 16-byte aligned
#pragma unroll 4
  for (int i = lane * 8; i < in_eights; i += 256) {
    Bf16x8 w[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) w[r] = *reinterpret_cast<const Bf16x8*>(weight[r] + i);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      const Bf16x8 x = *reinterpret_cast<const Bf16x8*>(p.x + int64_t{n} * p.k + i);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int e = 0; e < 8; ++e) sums[r][n] = fmaf(w[r][e], x[e], sums[r][n]);
      }
    }
  }
  for (int i = in_eights + lane; i < p.k; i += 32) {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        sums[r][n] = fmaf(to_float(weight[r][i]), to_float(p.x[int64_t{n} * p.k + i]), sums[r][n]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int n = 0; n < kN; ++n) sums[r][n] = warp_reduce(sums[r][n], Sum{});
  }
  if (lane != 0) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= n_rows) break;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      part.store(int64_t{n} * part.m + first + r,
                 sums[r][n] + (part.bias == nullptr ? 0.0f : part.bias[first + r]));
    }
  }
}

template <int kN>
void launch_few(const FewRows& p, Stream& stream) {
  if constexpr (kN > 1) {
    if (p.n < kN) return launch_few<kN - 1>(p, stream);
  }
  launch("MatMul", multiply_few<kN>, p.n_blocks(), 32 * kWarps, 0, stream, p);
}

uint64_t address(const void* data) { return reinterpret_cast<uint64_t>(data); }

bool is_aligned(const Act& x, const MatMul::Part& part) {
  return (address(x.data) | address(part.weight.data) | address(part.out.data)) % 16 == 0;
}

// What cuBLASLt's choice of a kernel depends on.
std::tuple<int64_t, int64_t, int64_t, int> algorithm_key(const Act& x, const MatMul::Part& part) {
  const int kind = (part.bias.data != nullptr ? 1 : 0) | (part.accumulate ? 2 : 0) |
                   (part.out.elem_bytes == 4 ? 4 : 0) | (is_aligned(x, part) ? 8 : 0) |
                   (part.weight.scale != nullptr ? 16 : 0);
  return {x.rows, part.weight.rows, x.cols, kind};
}

}  // namespace

// Row-major out [n, m] = x [n, k] weight [m, k]^T is, column-major, out^T = weight^T^T x^T. Of a
// part of a weight's rows, m is less than out.cols.
void CudaBackend::multiply(const Act& x, const MatMul::Part& part, const void* bias,
                           cudaStream_t stream) {
  const int64_t n = x.rows, k = x.cols, m = part.weight.rows;
  const cudaDataType_t out_type = part.out.elem_bytes == 4 ? CUDA_R_32F : CUDA_R_16BF;
  const bool fp8 = part.weight.scale != nullptr;
  const cudaDataType_t type = fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
  Descriptors make;
  EI_CUBLAS(cublasLtMatmulDescCreate(&make.product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
    EI_CUBLAS(cublasLtMatmulDescSetAttribute(make.product, attribute, &value, sizeof(value)));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (bias != nullptr) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
  }
  if (fp8) {
    const int32_t of_each_row = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, of_each_row);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, of_each_row);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, part.weight.scale);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales_of(x));
  }
  const auto rows = [](int64_t count) { return static_cast<uint64_t>(count); };
  EI_CUBLAS(cublasLtMatrixLayoutCreate(&make.weight, type, rows(k), rows(m), k));
  EI_CUBLAS(cublasLtMatrixLayoutCreate(&make.x, type, rows(k), rows(n), k));
  EI_CUBLAS(cublasLtMatrixLayoutCreate(&make.out, out_type, rows(m), rows(n), part.out.cols));

  const auto key = algorithm_key(x, part);
  auto it = algorithms_.find(key);
  if (it == algorithms_.end()) {
    EI_CUBLAS(cublasLtMatmulPreferenceCreate(&make.preference));
    const auto bytes = static_cast<uint64_t>(kWorkspaceBytes);
    EI_CUBLAS(cublasLtMatmulPreferenceSetAttribute(
        make.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes)));
    const uint32_t alignment = is_aligned(x, part) ? 16 : 2;
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      EI_CUBLAS(cublasLtMatmulPreferenceSetAttribute(make.preference, attribute, &alignment,
                                                     sizeof(alignment)));
    }
    cublasLtMatmulHeuristicResult_t best{};
    int n_found = 0;
    EI_CUBLAS(cublasLtMatmulAlgoGetHeuristic(cublas_, make.product, make.weight, make.x, make.out,
                                             make.out, make.preference, 1, &best, &n_found));
    if (n_found == 0) throw Error("MatMul: cuBLASLt has no algorithm for this shape");
    it = algorithms_.emplace(key, best.algo).first;
  }
  const float alpha = 1, beta = part.accumulate ? 1.0f : 0.0f;
  EI_CUBLAS(cublasLtMatmul(cublas_, make.product, &alpha, part.weight.data, make.weight, x.data,
                           make.x, &beta, part.out.data, make.out, part.out.data, make.out,
                           &it->second, workspace_, static_cast<size_t>(kWorkspaceBytes), stream));
}

void CudaBackend::multiply(const Act& x, const MatMul::Part& part) {
  const int64_t m = part.weight.rows;
  const void* bias = part.bias.data;
  if (bias != nullptr && part.out.elem_bytes == 2) {
    void* rounded = scratch(m * 2);
    launch("MatMul", round_bias, blocks_for(m, 256), 256, 0, stream_, part.bias.data,
           static_cast<bf16*>(rounded), static_cast<int>(m));
    bias = rounded;
  }
  // cuBLASLt loads a kernel when it is used first, which cannot be captured.
  const auto algorithm = algorithm_key(x, part);
  if (!algorithms_.contains(algorithm)) stream_.get();
  const std::array<uint64_t, 9> key = {address(x.data),
                                       address(part.weight.data),
                                       address(bias),
                                       address(part.out.data),
                                       uint64_t(x.rows),
                                       uint64_t(x.cols),
                                       uint64_t(m),
                                       uint64_t(part.out.cols),
                                       uint64_t(std::get<3>(algorithm))};
  stream_.call("MatMul", key, [=, this](cudaStream_t stream) { multiply(x, part, bias, stream); });
}

// Unpacked a panel at a time, which is read from memory again: of little weight beside the product.
void CudaBackend::multiply_unpacked(const Act& x, const MatMul::Part& part) {
  const int64_t row = row_bytes(WeightFormat::kBF16, x.cols);
  const int64_t step = std::max<int64_t>(1, kPanelBytes / row / 128) * 128;
  void* bf16_rows = reserve(panel_, std::min(step, part.weight.rows) * row);
  for (int64_t first = 0; first < part.weight.rows; first += step) {
    const int64_t count = std::min(step, part.weight.rows - first);
    unpack(part.weight.slice(first, count), nullptr, count, bf16_rows, stream_);
    MatMul::Part panel = part;
    panel.weight = {bf16_rows, WeightFormat::kBF16, count, x.cols};
    if (part.bias.data != nullptr) panel.bias = part.bias.slice(first, count);
    panel.out.data = static_cast<char*>(part.out.data) + first * part.out.elem_bytes;
    multiply(x, panel);
  }
}

Act CudaBackend::rounded_room(const Act& x) {
  return {reserve(rows_, x.rows * (x.cols + int64_t{sizeof(float)})), x.rows, x.cols, 1};
}

Act CudaBackend::rounded(const Act& x) {
  const Act& left = rounded_.rows;
  if (rounded_.of == x.data && rounded_.n_calls == stream_.n_calls() && left.rows == x.rows &&
      left.cols == x.cols)
    return left;
  const Act rows = rounded_room(x);
  quantize_rows(x.data, x.rows, x.cols, rows.data, scales_of(rows), stream_);
  return rows;
}

// Parts of the same format that few rows of x are multiplied by are started together; more rows are
// rounded to e4m3 once for all parts that are.
void CudaBackend::run(const MatMul& op) {
  check(op);
  if (op.x.rows == 0) return;
  const Stream::Touches touches(stream_, {memory_of(op.x), memory_of(op.parts[0].out),
                                          memory_of(op.parts[1].out), memory_of(op.parts[2].out)});
  std::array<bool, 3> done{};
  Act x8;  // once a weight in e4m3 is there
  for (size_t i = 0; i < op.parts.size(); ++i) {
    const Weight& weight = op.parts[i].weight;
    if (weight.data == nullptr || done[i]) continue;
    const bool e4m3 = weight.scale != nullptr, in_e4m3 = e4m3 && !weight.by_block;
    const bool quantized = is_quantized(weight.format);
    if (is_integer(weight.format) ? !weight.in_tiles
                                  : !quantized && weight.format != WeightFormat::kBF16)
      throw Error("MatMul: a weight has not been placed");
    Act x = op.x;
    if (weight.order != nullptr) {
      x.data = reserve(rows_, x.rows * x.cols * x.elem_bytes);
      permute_columns(op.x, weight.order, x.data, stream_);
      x8 = {};  // it was there
    }
    if (x.rows > (in_e4m3 ? kMaxExactRows : quantized ? kMaxPackedRows : kMaxFewRows)) {
      if (in_e4m3 && x8.data == nullptr) x8 = rounded(x);
      in_e4m3     ? multiply(x8, op.parts[i])
      : quantized ? multiply_unpacked(x, op.parts[i])
                  : multiply(x, op.parts[i]);
      continue;
    }
    FewRows few(x);
    for (size_t j = i; j < op.parts.size(); ++j) {
      const Weight& other = op.parts[j].weight;
      if (other.data == nullptr || other.format != weight.format || other.order != weight.order ||
          (other.scale != nullptr) != e4m3 || other.by_block != weight.by_block)
        continue;
      few.add(op.parts[j], e4m3        ? e4m3_outputs(x.rows)
                           : quantized ? packed_outputs(weight.format, x.rows)
                                       : kRows * kWarps);
      done[j] = true;
    }
    e4m3        ? multiply_e4m3(few, weight.by_block, stream_)
    : quantized ? multiply_packed(few, weight.format, stream_)
                : launch_few<kMaxFewRows>(few, stream_);
  }
}

}  // namespace ei::cuda
