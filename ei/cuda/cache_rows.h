#pragma once

#include "ei/base/error.h"
#include "ei/cuda/device/cache_rows.cuh"
#include "ei/ops/kv.h"

namespace ei::cuda {

// What kernels read of a KvLayer.
inline CacheRows cache_rows(const KvLayer& kv) {
  const PageLayout& layout = kv.layout;
  if (layout.dtype == DType::kQ8) throw Error("CUDA: caches of q8_0 are computed on the CPU alone");
  return {.pages = kv.pages.data,
          .max_pages = kv.pages.dim(1),
          .page_rows = static_cast<int32_t>(layout.rows),
          .first_value = static_cast<int32_t>(layout.first_value()),
          .first_lowest = static_cast<int32_t>(layout.first_lowest() / layout.bound_rows()),
          .first_highest = static_cast<int32_t>(layout.first_highest() / layout.bound_rows()),
          .page_blocks = static_cast<int32_t>(layout.n_blocks()),
          .scale_offset = static_cast<int32_t>(layout.first_scale() * layout.row_bytes()),
          .d = static_cast<int32_t>(layout.head_dim)};
}

// Sequences that one launch takes as kernel parameters.
inline constexpr size_t kMaxSequences = 64;

}  // namespace ei::cuda
