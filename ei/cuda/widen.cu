#include <bit>

#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/e4m3_cache.cuh"
#include "ei/cuda/launch.cuh"

// Caches of e4m3 for kernels that compute in bf16.
namespace ei::cuda {
namespace {

constexpr int kThreads = 256;

// blockIdx: page, KV head, whether of values, if these are wanted. Writes the pages' addresses too.
__global__ void __launch_bounds__(kThreads)
    widen_pages(const __grid_constant__ CacheRows from, char* to, int64_t page_bytes, void** pages,
                int n_rows) {
  const int page = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const bool is_value = blockIdx.z == 1;
  const int first = page * from.page_rows, n = min(from.page_rows, n_rows - first);
  const int64_t at = int64_t{head} * gridDim.x + page;
  char* const to_page = to + at * page_bytes;
  if (threadIdx.x == 0 && !is_value) pages[at] = to_page;
  const auto* bytes =
      from.page<unsigned char>(head, page) + (is_value ? int64_t{from.first_value} * from.d : 0);
  const float* scales = from.scale(head, first) + (is_value ? from.page_rows : 0);
  auto* out = reinterpret_cast<uint4*>(to_page) + (is_value ? from.page_rows * from.d / 8 : 0);
  const int units = from.d / 8;  // of a row
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < n * units; i += kThreads) {
    const uint2 eight = __ldg(reinterpret_cast<const uint2*>(bytes) + i);
    const float row_scale = __ldg(scales + i / units);
    const auto widen = is_value ? widen_values : widen_keys;
    const uint2 a = widen(eight.x, row_scale), b = widen(eight.y, row_scale);
    out[i] = {a.x, a.y, b.x, b.y};
  }
}

PageLayout widened_layout(const PageLayout& layout) {
  return {.dtype = DType::kBF16, .head_dim = layout.head_dim, .rows = layout.rows};
}

}  // namespace

// A layer in bf16 and its page table. A prompt's chunks see more and more: room grows by doubling.
int64_t CudaBackend::attention_bytes(const PageLayout& layout, int64_t n_kv_heads,
                                     int64_t n) const {
  if (layout.dtype != DType::kFP8) return 0;
  const int64_t of_page = widened_layout(layout).bytes() + int64_t{sizeof(void*)};
  return static_cast<int64_t>(
      std::bit_ceil(static_cast<uint64_t>(n_kv_heads * layout.pages(n) * of_page)));
}

KvLayer CudaBackend::widened(const KvLayer& kv, int64_t n_rows, bool with_values) {
  KvLayer wide = kv;
  wide.layout = widened_layout(kv.layout);
  const int64_t n_heads = kv.n_kv_heads(), n_pages = kv.layout.pages(n_rows);
  const int64_t page_bytes = wide.layout.bytes();
  auto* rows = static_cast<char*>(reserve(widened_, attention_bytes(kv.layout, n_heads, n_rows)));
  auto** pages = reinterpret_cast<void**>(rows + n_heads * n_pages * page_bytes);
  const dim3 grid(static_cast<unsigned>(n_pages), static_cast<unsigned>(n_heads),
                  with_values ? 2 : 1);
  launch("widen", widen_pages, grid, kThreads, 0, stream_, cache_rows(kv), rows, page_bytes, pages,
         static_cast<int>(n_rows));
  wide.pages = {pages, {n_heads, n_pages}};
  return wide;
}

}  // namespace ei::cuda
