#include "ei/ops/collectives.h"

#include <array>

#include "ei/cuda/cuda_backend.h"

namespace ei::cuda {

void CudaBackend::run(const AllReduce& op) {
  const int64_t n = op.x.rows * op.x.cols;
  if (nccl_ == nullptr || n == 0) return;
  const std::array<uint64_t, 2> key = {reinterpret_cast<uint64_t>(op.x.data),
                                       static_cast<uint64_t>(n)};
  const auto sum = [nccl = nccl_.get(), x = op.x.data, n](cudaStream_t stream) {
    nccl->all_reduce(x, n, stream);
  };
  if (op.x.rows < kBesideRows || !use_beside_) return stream_.call("AllReduce", key, sum);
  stream_.call_beside(memory_of(op.x), sum);
}

void CudaBackend::run(const AllGather& op) {
  check(op, ranks_->size());
  const auto* part = static_cast<const float*>(op.part.data);
  auto* out = static_cast<float*>(op.out.data);
  const int64_t rows = op.part.rows, m = op.part.cols;
  if (rows == 0) return;
  if (nccl_ == nullptr) return copy_in(out, part, rows * m * int64_t{sizeof(float)});
  const std::array<uint64_t, 4> key = {reinterpret_cast<uint64_t>(part),
                                       reinterpret_cast<uint64_t>(out), static_cast<uint64_t>(rows),
                                       static_cast<uint64_t>(m)};
  stream_.call("AllGather", key, [nccl = nccl_.get(), part, out, rows, m](cudaStream_t stream) {
    nccl->all_gather(part, out, rows, m, stream);
  });
}

}  // namespace ei::cuda
