#include "ei/cuda/attention_tiles.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/reduce.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/simple_attention.h"

namespace ei::cuda {
namespace {

constexpr int kThreads = 128;

struct Params {
  const bf16* q;
  bf16* out;
  int64_t n_heads;
  int group;
  CacheRows rows;
  float scale;
  const int32_t* n_rows;  // decoding: a query sees all rows; else null
  int64_t begin, segment, block;
  View<const int32_t, 2> count;
  View<const int32_t, 3> index;
};

template <class T>
__global__ void __launch_bounds__(kThreads) attend(const __grid_constant__ Params p) {
  using Key = std::conditional_t<sizeof(T) == 1, int8_t, T>;  // of a cache of fp8
  extern __shared__ float shared[];  // query [d], sums [d], probabilities [kThreads]
  __shared__ float parts[32];
  const int64_t i = blockIdx.x, head = blockIdx.y, kv_head = head / p.group;
  const int d = p.rows.d, thread = static_cast<int>(threadIdx.x);
  float *query = shared, *sums = shared + d, *probs = shared + 2 * d;
  KeyList keys;
  const int32_t* index = nullptr;
  if (p.n_rows != nullptr) {
    keys.size = p.n_rows[kv_head];
  } else {
    QueryTile tile;  // of this query alone
    const int64_t position = p.begin + i, segment = position / p.segment - p.begin / p.segment;
    tile.segment_start = static_cast<int32_t>(position / p.segment * p.segment);
    tile.end = static_cast<int32_t>(position + 1);
    const int64_t slot = kv_head * p.count.dims[1] + segment;
    keys = key_list(tile, p.count.data[slot], static_cast<int32_t>(p.block));
    index = p.index.data + slot * p.index.dims[2];
  }
  const auto scale_of = [&](int row, int which) {
    if constexpr (sizeof(T) == 1) {
      return p.rows.scale(kv_head, row)[which * p.rows.page_rows];
    } else {
      return 1.0f;
    }
  };
  for (int c = thread; c < d; c += kThreads) {
    query[c] = to_float(p.q[(i * p.n_heads + head) * d + c]);
    sums[c] = 0;
  }
  const auto row_of = [&](int j) {
    if (j >= keys.n_selected) return keys.own_row(j);
    const int block = static_cast<int>(p.block);
    return index[j / block] * block + j % block;
  };

  float top = -INFINITY, sum = 0;
  for (int first = 0; first < keys.size; first += kThreads) {
    __syncthreads();
    const int j = first + thread;
    float s = -INFINITY;
    if (j < keys.size) {
      const Key* key = p.rows.key<Key>(kv_head, row_of(j));
      s = 0;
      for (int c = 0; c < d; ++c) s += query[c] * to_float(key[c]);
      s *= p.scale * scale_of(row_of(j), 0);
    }
    const float most = fmaxf(top, block_reduce(s, Max{}, parts));
    const float rescale = expf(top - most);
    top = most;
    probs[thread] = expf(s - top);
    sum = sum * rescale + block_reduce(probs[thread], Sum{}, parts);
    if (j < keys.size) probs[thread] *= scale_of(row_of(j), 1);
    __syncthreads();
    const int n = min(kThreads, keys.size - first);
    for (int c = thread; c < d; c += kThreads) {
      float total = sums[c] * rescale;
      for (int e = 0; e < n; ++e)
        total += probs[e] * to_float(p.rows.value<T>(kv_head, row_of(first + e))[c]);
      sums[c] = total;
    }
  }
  for (int c = thread; c < d; c += kThreads)
    p.out[(i * p.n_heads + head) * d + c] = __float2bfloat16_rn(sums[c] / sum);
}

void start(const char* name, const Params& p, DType dtype, int64_t n, Stream& stream) {
  const size_t shared = sizeof(float) * (2 * static_cast<size_t>(p.rows.d) + kThreads);
  const dim3 grid(static_cast<unsigned>(n), static_cast<unsigned>(p.n_heads));
  const auto kernel = dtype == DType::kBF16  ? attend<bf16>
                      : dtype == DType::kFP8 ? attend<e4m3>
                                             : attend<float>;
  launch(name, kernel, grid, kThreads, shared, stream, p);
}

}  // namespace

void attend_simply(const SparseAttention& op, Stream& stream) {
  Params p{};
  p.q = static_cast<const bf16*>(op.q.data);
  p.out = static_cast<bf16*>(op.out.data);
  p.rows = cache_rows(op.kv);
  p.n_heads = op.q.cols / op.kv.layout.head_dim;
  p.group = static_cast<int>(p.n_heads / op.kv.n_kv_heads());
  p.scale = op.scale;
  p.begin = op.begin;
  p.segment = op.segment;
  p.block = op.block;
  p.count = op.selection.count;
  p.index = op.selection.index;
  start("SparseAttention", p, op.kv.layout.dtype, op.q.rows, stream);
}

void attend_simply(const DecodeAttention& op, Stream& stream) {
  for (size_t i = 0; i < op.kv.size(); ++i) {
    const KvLayer& kv = op.kv[i];
    Params p{};
    p.q = static_cast<const bf16*>(op.q.data) + static_cast<int64_t>(i) * op.q.cols;
    p.out = static_cast<bf16*>(op.out.data) + static_cast<int64_t>(i) * op.q.cols;
    p.rows = cache_rows(kv);
    p.n_heads = op.q.cols / kv.layout.head_dim;
    p.group = static_cast<int>(p.n_heads / kv.n_kv_heads());
    p.scale = op.scale;
    p.n_rows = kv.n_rows.data;
    start("DecodeAttention", p, kv.layout.dtype, 1, stream);
  }
}

}  // namespace ei::cuda
