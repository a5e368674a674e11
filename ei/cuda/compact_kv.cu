#include <algorithm>

#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

constexpr int kRowsOfBlock = 32;

// T: what rows are made of, d of them. kScaled: they have scales, of e4m3. blockIdx: tile of kept
// rows, head of `to`.
template <class T, bool kScaled>
__global__ void compact(CacheRows from, CacheRows to, const int32_t* rows, int64_t capacity,
                        const int32_t* count, int32_t* n_rows, int copies) {
  const int head = static_cast<int>(blockIdx.y), n = count[head];
  const int begin = static_cast<int>(blockIdx.x) * kRowsOfBlock, d = from.d;
  const int end = min(begin + kRowsOfBlock, n);
  if (blockIdx.x == 0 && threadIdx.x == 0 && threadIdx.y == 0) n_rows[head] = n;
  for (int i = begin + static_cast<int>(threadIdx.y); i < end; i += static_cast<int>(blockDim.y)) {
    const int row = rows[head * capacity + i];
    if (kScaled && threadIdx.x < 2) {
      const int which = static_cast<int>(threadIdx.x);  // the key's, the value's
      to.scale(head, i)[which * to.page_rows] =
          from.scale(head / copies, row)[which * from.page_rows];
    }
    for (int c = static_cast<int>(threadIdx.x); c < d; c += static_cast<int>(blockDim.x)) {
      const T key = from.key<T>(head / copies, row)[c],
              value = from.value<T>(head / copies, row)[c];
      to.key<T>(head, i)[c] = key;
      to.value<T>(head, i)[c] = value;
    }
  }
}

}  // namespace

void CudaBackend::run(const CompactKv& op) {
  check(op);
  const int64_t heads = op.to.n_kv_heads(), capacity = op.keep.rows.dim(1);
  CacheRows from = cache_rows(op.from), to = cache_rows(op.to);
  const auto start = [&]<class T, bool kScaled>() {
    from.d = to.d = static_cast<int32_t>(op.from.layout.row_bytes() / int64_t{sizeof(T)});
    const dim3 grid(blocks_for(std::max<int64_t>(1, capacity), kRowsOfBlock),
                    static_cast<unsigned>(heads));
    launch("CompactKv", compact<T, kScaled>, grid, dim3(16, 16), 0, stream_, from, to,
           op.keep.rows.data, capacity, op.keep.count.data, op.to.n_rows.data,
           static_cast<int>(heads / op.from.n_kv_heads()));
  };
  if (op.from.layout.dtype == DType::kFP8) {
    start.operator()<uint4, true>();
  } else if (op.from.layout.row_bytes() % 16 == 0) {
    start.operator()<uint4, false>();
  } else {
    start.operator()<uint16_t, false>();
  }
}

}  // namespace ei::cuda
