#include <algorithm>

#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/e4m3.cuh"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/fp8.h"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

constexpr int kHeld = 4;  // vectors of a row that a thread keeps in registers

// blockDim.x threads a row, blockDim.y rows a block: rows of one head take a warp each, rows of the
// residual stream a block. What kHeld vectors a thread do not hold is read twice. With kRound, rows
// are held whole and go to `rows` in e4m3 too.
template <bool kRound>
__global__ void rms_norm(const bf16* x, const float* weight, float eps, bf16* out, int64_t n,
                         int width, uint8_t* rows, float* scale) {
  __shared__ float parts[32];
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= n) return;  // whole warps; with one row a block there is none
  const bf16* from = x + row * width;
  bf16* to = out + row * width;
  const int n_threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int n_vectors = width % 8 == 0 ? width / 8 : 0, held_end = kHeld * n_threads;

  float sum = 0;
  const auto add = [&](const Numbers<8>& v) {
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += v.x[e] * v.x[e];
  };
  uint4 held[kHeld];
  hold_row(held, n_vectors, [&](int i) { return reinterpret_cast<const uint4*>(from)[i]; });
#pragma unroll
  for (int j = 0; j < kHeld; ++j) add(Numbers<8>::of(held[j]));
  for (int i = thread + held_end; i < n_vectors; i += n_threads)
    add(Numbers<8>::load(from + 8 * i));
  for (int i = n_vectors * 8 + thread; i < width; i += n_threads)
    sum += to_float(from[i]) * to_float(from[i]);
  sum = blockDim.y > 1 ? warp_reduce(sum, Sum{}) : block_reduce(sum, Sum{}, parts);

  const float factor = rsqrtf(sum / static_cast<float>(width) + eps);
  const auto write = [&](Numbers<8> v, int i) {
    const auto w = Numbers<8>::load(weight + 8 * i);
#pragma unroll
    for (int e = 0; e < 8; ++e) v.x[e] *= factor * w.x[e];
    const Bf16x8 packed = pack_bf16(v.x);
    *reinterpret_cast<Bf16x8*>(to + 8 * i) = packed;
    return uint4{packed.word[0], packed.word[1], packed.word[2], packed.word[3]};
  };
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = thread + j * n_threads;
    if (i < n_vectors) held[j] = write(Numbers<8>::of(held[j]), i);
  }
  if constexpr (kRound) {
    round_row(held, n_vectors, {reinterpret_cast<uint2*>(rows + row * width), scale + row}, parts);
  } else {
    for (int i = thread + held_end; i < n_vectors; i += n_threads)
      write(Numbers<8>::load(from + 8 * i), i);
    for (int i = n_vectors * 8 + thread; i < width; i += n_threads)
      to[i] = __float2bfloat16_rn(to_float(from[i]) * factor * weight[i]);
  }
}

}  // namespace

void CudaBackend::run(const RmsNorm& op) {
  check(op);
  const Stream::Touches touches(stream_, {memory_of(op.x), memory_of(op.out)});
  const int64_t n = op.x.rows;
  // A prompt's rows fill the GPU whatever their blocks, so that threads hold much; few rows do not.
  const unsigned held = n >= n_sms_ ? kHeld : 1;
  const unsigned warps = std::min(16u, blocks_for(op.x.cols, held * 8 * 32));  // of a row
  const dim3 block = warps == 1 ? dim3(32, 8) : dim3(32 * warps, 1);
  const auto start = [&](auto kernel, uint8_t* rows, float* scale) {
    launch("RmsNorm", kernel, blocks_for(n, block.y), block, 0, stream_,
           static_cast<const bf16*>(op.x.data), op.weight.data, op.eps,
           static_cast<bf16*>(op.out.data), n, static_cast<int>(op.x.cols), rows, scale);
  };
  const bool whole = op.x.cols % 32 == 0 && op.x.cols <= 8 * kHeld * int64_t{block.x};
  if (!fp8_ || block.y > 1 || !whole || n <= kMaxExactRows)
    return start(rms_norm<false>, nullptr, nullptr);
  const Act rows = rounded_room(op.out);
  start(rms_norm<true>, static_cast<uint8_t*>(rows.data), scales_of(rows));
  rounded_ = {op.out.data, rows, stream_.n_calls()};
}

}  // namespace ei::cuda
