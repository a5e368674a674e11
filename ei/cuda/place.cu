#include <cuda_fp16.h>

#include <algorithm>

#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/fp8.h"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/quantized.h"

namespace ei::cuda {
namespace {

// Converted in pieces of this size, so that no second copy of a large matrix is held.
constexpr int64_t kPieceBytes = int64_t{64} << 20;

template <class T>
__global__ void narrow(const T* from, bf16* to, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) to[i] = __float2bfloat16_rn(static_cast<float>(from[i]));
}

}  // namespace

// Integers go into tiles, of FP8 scales go apart from numbers, f32 and f16 are rounded to bf16.
// Copies are freed with memory_.
Weight CudaBackend::place(const Weight& host) {
  if (host.format == WeightFormat::kFP8) return place_e4m3(host, true);
  Weight placed = host;
  placed.in_tiles = is_integer(host.format);
  if (!placed.in_tiles) placed.format = WeightFormat::kBF16;
  void* data = memory_.allocate(placed.bytes());
  placed.data = data;
  if (host.order != nullptr) {
    const int64_t bytes = host.cols * int64_t{sizeof(int32_t)};
    void* order = memory_.allocate(bytes);
    copy_in(order, host.order, bytes);
    placed.order = static_cast<const int32_t*>(order);
  }
  if (placed.in_tiles) {
    copy_in_tiles(host, 0, host.rows, data);
  } else if (host.format == placed.format) {
    copy_in(data, host.data, host.bytes());
  } else {
    copy_in_bf16(host, 0, host.rows, data);
  }
  return placed;
}

// Rows of no whole vectors, very long ones and those in another order are multiplied as bf16.
Weight CudaBackend::place_factor(const Weight& host) {
  if (!fp8_ || host.cols % 32 != 0 || host.rows % 16 != 0 || host.order != nullptr ||
      host.cols > kMaxRoundedCols)
    return place(host);
  return place_e4m3(host, false);
}

// With the scales of the host's blocks, or a scale a row.
Weight CudaBackend::place_e4m3(const Weight& host, bool by_block) {
  Weight placed = {nullptr, WeightFormat::kFP8, host.rows, host.cols};
  placed.by_block = by_block;
  const int64_t n_scales = by_block ? host.cols / 32 : 1;
  auto* data = static_cast<uint8_t*>(
      memory_.allocate(host.rows * (host.cols + n_scales * int64_t{sizeof(float)})));
  auto* scale = reinterpret_cast<float*>(data + host.rows * host.cols);
  placed.data = data;
  placed.scale = scale;
  const bool in_blocks = host.format == WeightFormat::kFP8;
  const int64_t bytes = row_bytes(in_blocks ? host.format : WeightFormat::kBF16, host.cols);
  const int64_t step = std::max<int64_t>(1, kPanelBytes / bytes);
  for (int64_t first = 0; first < host.rows; first += step) {
    const int64_t count = std::min(step, host.rows - first);
    void* panel = reserve(panel_, std::max(kPanelBytes, bytes));
    uint8_t* to = data + first * host.cols;
    if (in_blocks) {
      copy_in(panel, host.row(first), count * bytes);
      (by_block ? split_blocks : merge_scales)(panel, count, host.cols, to,
                                               scale + first * n_scales, stream_);
    } else {
      copy_in_bf16(host, first, count, panel);
      quantize_rows(panel, count, host.cols, to, scale + first, stream_);
    }
  }
  return placed;
}

void CudaBackend::copy_in_tiles(const Weight& host, int64_t first, int64_t count, void* to) {
  Weight placed = host;
  placed.in_tiles = true;
  const int64_t step = std::max<int64_t>(1, kPieceBytes / host.row_bytes() / 16) * 16;
  for (int64_t i = 0; i < count; i += step) {
    const int64_t n = std::min(step, count - i), bytes = n * host.row_bytes();
    void* blocks = scratch(bytes);
    copy_in(blocks, host.row(first + i), bytes);
    pack(blocks, host.format, n, host.cols, static_cast<char*>(to) + i * placed.row_bytes(),
         stream_);
  }
}

void CudaBackend::copy_in_bf16(const Weight& host, int64_t first, int64_t count, void* to) {
  const auto* from = host.row(first);
  const int64_t bytes = count * row_bytes(host.format, host.cols);
  if (host.format == WeightFormat::kBF16) return copy_in(to, from, bytes);
  if (is_quantized(host.format)) {
    Weight rows = host.slice(first, count);
    rows.in_tiles = true;
    void* tiles = reserve(rows_, rows.bytes());
    copy_in_tiles(host, first, count, tiles);
    rows.data = tiles;
    return unpack(rows, nullptr, count, to, stream_);
  }
  const int64_t width = row_bytes(host.format, 1), step = kPieceBytes / width;
  for (int64_t i = 0; i < count * host.cols; i += step) {
    const int64_t n = std::min(step, count * host.cols - i);
    void* piece = scratch(kPieceBytes);
    copy_in(piece, from + i * width, n * width);
    bf16* numbers = static_cast<bf16*>(to) + i;
    if (host.format == WeightFormat::kF32) {
      launch("place", narrow<float>, blocks_for(n, 256), 256, 0, stream_,
             static_cast<const float*>(piece), numbers, n);
    } else {
      launch("place", narrow<__half>, blocks_for(n, 256), 256, 0, stream_,
             static_cast<const __half*>(piece), numbers, n);
    }
  }
}

}  // namespace ei::cuda
