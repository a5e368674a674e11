#include "ei/base/error.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/quantized.h"

namespace ei::cuda {
namespace {

__global__ void embed(const int32_t* tokens, const bf16* table, bf16* out, int64_t width) {
  const bf16* from = table + tokens[blockIdx.x] * width;
  bf16* to = out + blockIdx.x * width;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}

}  // namespace

void CudaBackend::run(const Embed& op) {
  check(op);
  if (is_quantized(op.table.format))
    return unpack(op.table, op.tokens.data, op.out.rows, op.out.data, stream_);
  if (op.table.format != WeightFormat::kBF16) throw Error("Embed: the table has not been placed");
  launch("Embed", embed, static_cast<unsigned>(op.out.rows), 256, 0, stream_, op.tokens.data,
         static_cast<const bf16*>(op.table.data), static_cast<bf16*>(op.out.data), op.out.cols);
}

}  // namespace ei::cuda
