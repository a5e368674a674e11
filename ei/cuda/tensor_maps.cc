#include "ei/cuda/tensor_maps.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "ei/base/fail.h"
#include "ei/cuda/error.h"

namespace ei::cuda {
namespace {

// Found at run time: linking to the driver would keep the program from starting without one.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  EI_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                           cudaEnableDefault, &found));
  require(found == cudaDriverEntryPointSuccess, "the GPU driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

template <size_t kRank>
CUtensorMap encode(CUtensorMapDataType type, void* base, const std::array<cuuint64_t, kRank>& dims,
                   const std::array<cuuint64_t, kRank - 1>& strides,
                   const std::array<cuuint32_t, kRank>& box,
                   CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B) {
  static const PFN_cuTensorMapEncodeTiled_v12000 function = encoder();
  std::array<cuuint32_t, kRank> steps;
  steps.fill(1);
  CUtensorMap map;
  const CUresult code =
      function(&map, type, kRank, base, dims.data(), strides.data(), box.data(), steps.data(),
               CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(code == CUDA_SUCCESS, "CUDA: cuTensorMapEncodeTiled: error {}", static_cast<int>(code));
  return map;
}

}  // namespace

CUtensorMap query_map(const Act& q, int64_t n_rows) {
  const auto n = static_cast<cuuint64_t>(q.rows), cols = static_cast<cuuint64_t>(q.cols);
  return encode<3>(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, q.data, {64, n, cols / 64}, {cols * 2, 128},
                   {64, static_cast<cuuint32_t>(n_rows), 1});
}

CUtensorMap row_group_map(const Memory& memory, int64_t d, int n_groups) {
  const auto row_bytes = static_cast<cuuint64_t>(d) * 2;
  const cuuint64_t n = (memory.highest() - memory.lowest()) / (8 * row_bytes);
  require(n <= INT32_MAX,
          "CUDA: the allocated memory spans too wide a range of addresses, {:#x} to {:#x}",
          memory.lowest(), memory.highest());
  return encode<4>(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, reinterpret_cast<void*>(memory.lowest()),
                   {64, 8, static_cast<cuuint64_t>(d / 64), n}, {row_bytes, 128, 8 * row_bytes},
                   {64, 8, static_cast<cuuint32_t>(d / 64), static_cast<cuuint32_t>(n_groups)});
}

CUtensorMap byte_map(const void* data, int64_t n, int64_t n_heads, int64_t d, int n_rows) {
  const auto cols = static_cast<cuuint64_t>(n_heads * d);
  require(n <= INT32_MAX, "CUDA: the allocated memory spans too wide a range of addresses");
  return encode<2>(CU_TENSOR_MAP_DATA_TYPE_UINT8, const_cast<void*>(data),
                   {cols, static_cast<cuuint64_t>(n)}, {cols},
                   {static_cast<cuuint32_t>(d), static_cast<cuuint32_t>(n_rows)},
                   d == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B);
}

}  // namespace ei::cuda
