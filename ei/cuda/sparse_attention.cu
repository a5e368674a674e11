#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/simple_attention.h"

namespace ei::cuda {

void CudaBackend::run(const SparseAttention& op) {
  check(op);
  if (op.q.rows == 0) return;
  const KvLayer& kv = op.kv;
  const bool in_groups = kv.layout.rows % 8 == 0 && op.segment % 8 == 0 &&
                         (op.selection.index.data == nullptr || op.block % 8 == 0);
  const bool is_fast = kv.layout.dtype != DType::kF32 &&
                       (kv.layout.head_dim == 64 || kv.layout.head_dim == 128) && in_groups;
  if (is_fast && kv.layout.dtype == DType::kFP8) {
    if (fp8_) return attend_e4m3(op);
    SparseAttention wide = op;
    wide.kv = widened(kv, op.begin + op.q.rows, /*with_values=*/true);
    attend_hopper(wide);
  } else if (is_fast) {
    attend_hopper(op);
  } else {
    attend_simply(op, stream_);
  }
}

}  // namespace ei::cuda
