#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/e4m3.cuh"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/fp8.h"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

__device__ float swiglu(float gate, float up) { return gate / (1 + expf(-gate)) * up; }

// Eight numbers a thread; the last thread takes the rest one by one.
__global__ void swiglu(const bf16* gate, const bf16* up, bf16* out, int64_t n) {
  const int64_t i = 8 * (int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
  if (i + 8 <= n) {
    const Bf16x8 g = *reinterpret_cast<const Bf16x8*>(gate + i);
    const Bf16x8 u = *reinterpret_cast<const Bf16x8*>(up + i);
    float y[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) y[e] = swiglu(g[e], u[e]);
    *reinterpret_cast<Bf16x8*>(out + i) = pack_bf16(y);
  } else {
    for (int64_t j = i; j < n; ++j)
      out[j] = __float2bfloat16_rn(swiglu(to_float(gate[j]), to_float(up[j])));
  }
}

// A row a block, in e4m3 too.
__global__ void __launch_bounds__(1024) swiglu_rounded(const bf16* gate, const bf16* up, bf16* out,
                                                       uint8_t* rows, float* scale, int cols) {
  __shared__ float parts[32];
  const int64_t begin = int64_t{blockIdx.x} * cols;
  const int n_vectors = cols / 8;
  uint4 held[kRoundHeld];
  hold_row(held, n_vectors, [&](int i) {
    const auto g = Numbers<8>::load(gate + begin + 8 * i), u = Numbers<8>::load(up + begin + 8 * i);
    float y[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) y[e] = swiglu(g.x[e], u.x[e]);
    const Bf16x8 packed = pack_bf16(y);
    const uint4 vector = {packed.word[0], packed.word[1], packed.word[2], packed.word[3]};
    reinterpret_cast<uint4*>(out + begin)[i] = vector;
    return vector;
  });
  round_row(held, n_vectors, {reinterpret_cast<uint2*>(rows + begin), scale + blockIdx.x}, parts);
}

}  // namespace

void CudaBackend::run(const SwiGlu& op) {
  check(op);
  const Stream::Touches touches(stream_, {memory_of(op.gate), memory_of(op.up), memory_of(op.out)});
  if (fp8_ && op.out.cols % 32 == 0 && op.out.cols <= kMaxRoundedCols &&
      op.out.rows > kMaxExactRows) {
    const Act rows = rounded_room(op.out);
    launch("SwiGlu", swiglu_rounded, static_cast<unsigned>(rows.rows),
           threads_that_round(rows.cols), 0, stream_, static_cast<const bf16*>(op.gate.data),
           static_cast<const bf16*>(op.up.data), static_cast<bf16*>(op.out.data),
           static_cast<uint8_t*>(rows.data), scales_of(rows), static_cast<int>(rows.cols));
    rounded_ = {op.out.data, rows, stream_.n_calls()};
    return;
  }
  const int64_t n = op.out.rows * op.out.cols;
  void (*kernel)(const bf16*, const bf16*, bf16*, int64_t) = swiglu;
  launch("SwiGlu", kernel, blocks_for(n, 8 * 256), 256, 0, stream_,
         static_cast<const bf16*>(op.gate.data), static_cast<const bf16*>(op.up.data),
         static_cast<bf16*>(op.out.data), n);
}

}  // namespace ei::cuda
