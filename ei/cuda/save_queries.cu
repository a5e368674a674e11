#include <algorithm>

#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

struct Params {
  struct Ring {
    void* data;
    int64_t rows;
    int64_t position;  // of the sequence's first row of q
  };
  Ring rings[kMaxSequences];
  const void* q;
  int64_t share;
  int64_t cols;
};

// blockIdx: one of the last rows of a sequence's share, the sequence. Rows are of p.cols T.
template <class T>
__global__ void save(const __grid_constant__ Params p) {
  const Params::Ring& ring = p.rings[blockIdx.y];
  const int64_t i = p.share - 1 - blockIdx.x;
  if (i < 0 || blockIdx.x >= ring.rows) return;  // older rows would only be overwritten
  const T* from = static_cast<const T*>(p.q) + (blockIdx.y * p.share + i) * p.cols;
  T* to = static_cast<T*>(ring.data) + (ring.position + i) % ring.rows * p.cols;
  for (int64_t c = threadIdx.x; c < p.cols; c += blockDim.x) to[c] = from[c];
}

}  // namespace

void CudaBackend::run(const SaveQueries& op) {
  check(op);
  if (op.q.rows == 0) return;
  const int64_t share = op.q.rows / std::ssize(op.rings);
  for (size_t s = 0; s < op.rings.size(); s += kMaxSequences) {
    const size_t n = std::min(kMaxSequences, op.rings.size() - s);
    Params p{};
    int64_t most = 0;
    for (size_t i = 0; i < n; ++i) {
      const Act& ring = op.rings[s + i];
      p.rings[i] = {ring.data, ring.rows, op.positions[s + i]};
      most = std::max(most, ring.rows);
    }
    p.q = static_cast<const bf16*>(op.q.data) + static_cast<int64_t>(s) * share * op.q.cols;
    p.share = share;
    const bool in_eights = op.q.cols % 8 == 0;
    p.cols = in_eights ? op.q.cols / 8 : op.q.cols;
    const dim3 grid(static_cast<unsigned>(std::min(share, most)), static_cast<unsigned>(n));
    launch("SaveQueries", in_eights ? save<uint4> : save<bf16>, grid, 256, 0, stream_, p);
  }
}

}  // namespace ei::cuda
