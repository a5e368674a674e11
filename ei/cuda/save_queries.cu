#include <algorithm>

#include "ei/cuda/cache_rows.h"
#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/launch.cuh"

namespace ei::cuda {
namespace {

struct Params {
  struct Entry {
    const void* q;
    int64_t n;         // rows of q
    int64_t position;  // of the first
    void* ring;
    int64_t rows;  // of the ring
  };
  Entry entries[kMaxSequences];
  int64_t cols;
};

// blockIdx: one of the last rows of an entry's queries, the entry. Rows are of p.cols T.
template <class T>
__global__ void save(const __grid_constant__ Params p) {
  const Params::Entry& entry = p.entries[blockIdx.y];
  const int64_t i = entry.n - 1 - blockIdx.x;
  if (i < 0 || blockIdx.x >= entry.rows) return;  // older rows would only be overwritten
  const T* from = static_cast<const T*>(entry.q) + i * p.cols;
  T* to = static_cast<T*>(entry.ring) + (entry.position + i) % entry.rows * p.cols;
  for (int64_t c = threadIdx.x; c < p.cols; c += blockDim.x) to[c] = from[c];
}

}  // namespace

void CudaBackend::run(const SaveQueries& op) {
  check(op);
  for (size_t first = 0; first < op.entries.size(); first += kMaxSequences) {
    const auto entries =
        op.entries.subspan(first, std::min(kMaxSequences, op.entries.size() - first));
    Params p{};
    int64_t most = 0;
    for (size_t i = 0; i < entries.size(); ++i) {
      const auto& [q, position, ring] = entries[i];
      p.entries[i] = {q.data, q.rows, position, ring.data, ring.rows};
      most = std::max(most, std::min(q.rows, ring.rows));
    }
    if (most == 0) continue;
    const int64_t cols = entries[0].q.cols;
    const bool in_eights = cols % 8 == 0;
    p.cols = in_eights ? cols / 8 : cols;
    const dim3 grid(static_cast<unsigned>(most), static_cast<unsigned>(entries.size()));
    launch("SaveQueries", in_eights ? save<uint4> : save<bf16>, grid, 256, 0, stream_, p);
  }
}

}  // namespace ei::cuda
