#pragma once

#include "ei/cuda/device/cache_rows.cuh"
#include "ei/ops/kv.h"

namespace ei::cuda {

// What kernels read of a KvLayer.
inline CacheRows cache_rows(const KvLayer& kv) {
  return {kv.pages.data, kv.pages.dim(1), static_cast<int32_t>(kv.page_rows),
          static_cast<int32_t>(kv.head_dim)};
}

// Sequences that one launch takes as kernel parameters.
inline constexpr size_t kMaxSequences = 64;

}  // namespace ei::cuda
