#include <algorithm>

#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/e4m3.cuh"
#include "ei/cuda/device/wgmma.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/prefill_items.cuh"
#include "ei/cuda/tensor_maps.h"

// Prefill attention in 8 bits, for a cache of fp8 and heads of 64 or 128: queries are rounded to
// whole numbers, as keys are, with a scale for each row of a head, and probabilities to e4m3, as
// values are. The sums are whole numbers and floats. The plan is that of
// sparse_attention_hopper.cu, but for the values: e4m3 operands have the numbers of a sum side by
// side, so that two warps transpose every tile of values on its way. In a transposed row keys 2 i,
// 2 i + 1, 2 i + 8 and 2 i + 9 of sixteen are neighbours: these are what a thread has of the
// scores, and becomes one word of the probabilities' operand.
//
// With p = 2^(score - top) and the scales v of the values, what is multiplied is 2^8 p v / w, where
// w is the highest v seen: at most 2^8, and e4m3 holds it down to 2^-9. 2^8 / w goes with the top.
namespace ei::cuda {
namespace {

constexpr int kKeyStages = 4, kValueStages = 3, kStages = 2;
constexpr float kLogMost = 8;

struct Params : PrefillParams {
  CUtensorMap q;         // boxes of a tile's rows of a head
  CUtensorMap groups;    // boxes of 8 cache rows
  CUtensorMap runs;      // boxes of 128
  const float* q_scale;  // [n, n_heads]
};

// Rows of d bytes, in the swizzle of so many.
template <int kD>
struct Shared {
  static constexpr int kTileBytes = kTileKeys * kD;
  alignas(1024) unsigned char q[kStages][kTileBytes];
  alignas(1024) unsigned char k[kKeyStages][kTileBytes];
  alignas(1024) unsigned char v[kValueStages][kTileBytes];      // as it comes
  alignas(1024) unsigned char transposed[kStages][kTileBytes];  // [d][keys]
  alignas(1024) unsigned char out[2 * kTileBytes];              // in bf16
  alignas(128) float scales[kKeyStages][2][kTileKeys];          // of keys, of values
  alignas(8) uint64_t q_full[kStages], q_empty[kStages];
  alignas(8) uint64_t k_full[kKeyStages], k_empty[kKeyStages];
  alignas(8) uint64_t v_full[kValueStages], v_empty[kValueStages];
  alignas(8) uint64_t t_full[kStages], t_empty[kStages];
  Item item[kStages];
};

// Copies K or V tile t of an item's keys, and with K the scales of both, by a whole warp.
template <int kD>
__device__ void load_keys(const Params& p, const Item& item, int t, bool is_value,
                          unsigned char* to, float (*scales)[kTileKeys], uint64_t* full,
                          uint64_t* empty, uint32_t phase) {
  const int lane = static_cast<int>(threadIdx.x % 32), kv_head = item.head / p.heads_per_kv;
  // Lane l finds rows 4 l to 4 l + 3 of the tile, and lane l < 16 so group l.
  const int j = t * kTileKeys + 4 * lane, page_rows = p.rows.page_rows;
  const int row = j < item.keys.size ? row_of(p, item, j) : -1;
  const int first = __shfl_sync(0xffffffffu, row, 2 * lane % 32);
  int map_row = -kGroupKeys;  // outside the maps are zeros
  if (first >= 0) {
    const auto page = reinterpret_cast<uint64_t>(p.rows.page<void>(kv_head, first / page_rows));
    map_row = static_cast<int>((page - p.map_base) / kD) + first % page_rows +
              (is_value ? p.rows.first_value : 0);
  }
  mbarrier_wait(empty, phase ^ 1);
  if (lane == 0) mbarrier_arrive_expect(full, Shared<kD>::kTileBytes);
  __syncwarp();
  if (item.keys.is_run(t, page_rows)) {
    if (lane == 0) tma_load_2d(to, &p.runs, full, 0, map_row);
  } else if (lane < kTileKeys / kGroupKeys) {
    tma_load_2d(to + lane * kGroupKeys * kD, &p.groups, full, 0, map_row);
  }
  if (is_value) return;
  if (row >= 0) {
    const float* scale = p.rows.scale(kv_head, row);
    copy_async_16(&scales[0][4 * lane], scale, true);
    copy_async_16(&scales[1][4 * lane], scale + page_rows, true);
  }
  copy_async_arrive(full);
}

// Warp 0 takes items and copies Q and K.
template <int kD>
__device__ void produce_keys(const Params& p, Shared<kD>& shared) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  Cursor<kStages> q;
  Cursor<kKeyStages> k;
  for (;; q.next()) {
    const Item item = next_item(p);
    mbarrier_wait(&shared.q_empty[q.stage], q.phase ^ 1);
    if (lane == 0) {
      shared.item[q.stage] = item;
      if (item.head < 0) {
        mbarrier_arrive(&shared.q_full[q.stage]);
      } else {
        const int bytes = p.tiles.head_rows * kD;  // of a box
        mbarrier_arrive_expect(&shared.q_full[q.stage],
                               static_cast<uint32_t>(item.n_heads * bytes));
        for (int i = 0; i < item.n_heads; ++i)
          tma_load_2d(shared.q[q.stage] + i * bytes, &p.q, &shared.q_full[q.stage],
                      (item.head + i) * kD, item.tile.first - p.tiles.begin);
      }
    }
    __syncwarp();
    if (item.head < 0) return;
    for (int t = 0; t < item.keys.n_tiles(); ++t, k.next())
      load_keys<kD>(p, item, t, false, shared.k[k.stage], shared.scales[k.stage],
                    &shared.k_full[k.stage], &shared.k_empty[k.stage], k.phase);
  }
}

// use(item) for every item that warp 0 has taken; it is given back before.
template <int kD, class Use>
__device__ void for_items(Shared<kD>& shared, Use use) {
  Cursor<kStages> q;
  for (;; q.next()) {
    mbarrier_wait(&shared.q_full[q.stage], q.phase);
    const Item item = shared.item[q.stage];
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.q_empty[q.stage]);
    if (item.head < 0) return;
    use(item);
  }
}

// Warp 1 copies V.
template <int kD>
__device__ void produce_values(const Params& p, Shared<kD>& shared) {
  Cursor<kValueStages> v;
  for_items(shared, [&](const Item& item) {
    for (int t = 0; t < item.keys.n_tiles(); ++t, v.next())
      load_keys<kD>(p, item, t, true, shared.v[v.stage], nullptr, &shared.v_full[v.stage],
                    &shared.v_empty[v.stage], v.phase);
  });
}

// Half a tile [128 keys][128 d], of which n keys are the list's, to [128 d][128 keys]: even or odd
// sixteens of keys. Rows of the cache behind its last one hold anything, NaNs too: they become 0.
template <int kD>
__device__ void transpose(const unsigned char* from, unsigned char* to, int n, int which) {
  const int lane = static_cast<int>(threadIdx.x % 32), matrix = lane / 8, row = lane % 8;
  for (int q = which; q < kTileKeys / 16; q += 2) {
    uint32_t valid = 0xffffffffu;
    if (16 * q + 16 > n) {
      const int key = 16 * q + lane % 4 * 2;
      valid = (key < n ? 0xffu : 0) | (key + 1 < n ? 0xff00u : 0) | (key + 8 < n ? 0xff0000u : 0) |
              (key + 9 < n ? 0xff000000u : 0);
    }
#pragma unroll
    for (int c = 0; c < kD / 16; c += 2) {
      // Of sixteen columns c and those of c + 1: keys 0 to 7, then 8 to 15.
      const int key = 16 * q + matrix % 2 * 8 + row;
      uint32_t pairs[4];
      ldmatrix_x4_transposed(
          pairs, from + key * kD + ((c + matrix / 2) ^ row * kD / 128 % (kD / 16)) * 16);
      uint32_t words[4];  // of columns 2 (lane / 4), the next, and those of c + 1
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[i] = valid & __byte_perm(pairs[i / 2 * 2], pairs[i / 2 * 2 + 1],
                                       i % 2 == 0 ? 0x6420 : 0x7531);
      const int d = 16 * (c + matrix / 2) + 2 * row + matrix % 2;
      stmatrix_x4(to + d * kTileKeys + (q ^ d % 8) * 16, words);
    }
  }
}

// Warps 2 and 3 transpose V.
template <int kD>
__device__ void transpose_values(Shared<kD>& shared, int which) {
  Cursor<kValueStages> v;
  Cursor<kStages> to;
  for_items(shared, [&](const Item& item) {
    for (int t = 0; t < item.keys.n_tiles(); ++t, v.next(), to.next()) {
      mbarrier_wait(&shared.v_full[v.stage], v.phase);
      mbarrier_wait(&shared.t_empty[to.stage], to.phase ^ 1);
      transpose<kD>(shared.v[v.stage], shared.transposed[to.stage], item.keys.size - t * kTileKeys,
                    which);
      fence_async_proxy();
      __syncwarp();
      if (threadIdx.x % 32 == 0) {
        mbarrier_arrive(&shared.v_empty[v.stage]);
        mbarrier_arrive(&shared.t_full[to.stage]);
      }
    }
  });
}

// Sums of whole numbers begin here, of which the bits are those of the float 1.5 2^23: as floats
// they are that and what was added, if that is below 2^22, and 127 times 127 times 128 is.
constexpr uint32_t kZeroBits = 0x4b400000;
constexpr float kZero = 0x1.8p23f;

// s = kZero + Q K^T of this warpgroup's 64 queries.
template <int kD>
__device__ void issue_scores(float (&s)[64], uint32_t q, uint32_t k) {
#pragma unroll
  for (float& x : s) x = __uint_as_float(kZeroBits);
  pin(s);
  wgmma_fence();
  const uint64_t a = operand_rows<kD>(q), b = operand_rows<kD>(k);
#pragma unroll
  for (int i = 0; i < kD / 32; ++i) wgmma_s8(s, a + 2 * i, b + 2 * i);  // 32 bytes on
  wgmma_commit();
}

// o += P V, or o = P V.
template <int kN>
__device__ void issue_values(float (&o)[kN], const uint32_t (&p)[16], uint32_t v, bool accumulate) {
  pin(o);
  wgmma_fence();
  const uint64_t b = operand_rows<kTileKeys>(v);
#pragma unroll
  for (int i = 0; i < kTileKeys / 32; ++i) {
    const uint32_t a[4] = {p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
    wgmma_e4m3(o, a, b + 2 * i, i > 0 || accumulate);
  }
  wgmma_commit();
}

// A thread's two rows: (lane / 4) and the eighth behind it.
struct Softmax {
  float scale[2];   // of scores without their keys' scales, in powers of two
  float top[2];     // the highest score
  float offset[2];  // of the exponents
  float sum[2];
  float most_scale;  // of the values so far
};

// Multiplies what columns are above `zero` by their scales, of which the first n are some: behind
// is anything. Exact for powers of two.
__device__ inline void scale_columns(float (&s)[64], const float* scales, int n, float zero) {
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    float2 scale = *reinterpret_cast<const float2*>(scales + 8 * j);
    if (8 * j >= n) scale.x = 0;
    if (8 * j + 1 >= n) scale.y = 0;
    s[4 * j] = fmaf(s[4 * j], scale.x, -zero * scale.x);
    s[4 * j + 1] = fmaf(s[4 * j + 1], scale.y, -zero * scale.y);
    s[4 * j + 2] = fmaf(s[4 * j + 2], scale.x, -zero * scale.x);
    s[4 * j + 3] = fmaf(s[4 * j + 3], scale.y, -zero * scale.y);
  }
}

// The logarithm of a scale: of a power of two, or far above all.
__device__ inline float log_of(float scale) {
  return static_cast<float>(static_cast<int>(__float_as_uint(scale) >> 23) - 127);
}

// Turns scores into 2^(score - offset) and returns in `rescale` what earlier sums are to be
// multiplied by. They are what s is above `zero` times key_scale, or already times that of each
// key; sum_scale is what their sum is multiplied by.
__device__ inline void exponentials(float (&s)[64], Softmax& x, float (&rescale)[2], float zero,
                                    float key_scale, float log_value_scale, float sum_scale,
                                    bool is_first) {
  const float log_scale = log_of(x.most_scale) - kLogMost;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float scale = x.scale[r] * key_scale;
    float m = -INFINITY;
#pragma unroll
    for (int j = 0; j < 16; ++j) m = fmaxf(m, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    m = (m - zero) * scale;
    if (!is_first) m = fmaxf(m, x.top[r]);
    const float offset = m + log_scale;
    rescale[r] = is_first ? 0.0f : exp2_approx(x.offset[r] - offset);
    x.top[r] = m;
    x.offset[r] = offset;
    const float of_tile = fmaf(zero, scale, offset - log_value_scale);
    float part = 0;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& y = s[4 * j + 2 * r + e];
        y = exp2_approx(fmaf(y, scale, -of_tile));
        part += y;
      }
    }
    x.sum[r] = (is_first ? 0.0f : x.sum[r] * rescale[r]) + part * sum_scale;
  }
}

// Turns scores of the first n keys of a list's tile into what is multiplied with the values; what
// rows may not see is hidden from row limits on. Where all keys of a tile have one scale, or all
// values, as most have, it is the tile's.
__device__ void softmax(float (&s)[64], Softmax& x, float (&rescale)[2],
                        const float (*scales)[kTileKeys], int n, bool is_first, bool is_whole,
                        int first_key, const int (&limit)[2]) {
  const int lane = static_cast<int>(threadIdx.x % 32), column = lane % 4 * 2;
  const auto of_lane = [&](int which) {
    return reinterpret_cast<const uint4*>(scales[which])[lane];
  };
  const auto is_one = [&](uint4 of, uint32_t first) {
    return is_whole && __all_sync(kFullWarp, ((of.x ^ first) | (of.y ^ first) | (of.z ^ first) |
                                              (of.w ^ first)) == 0);
  };
  const uint4 of_keys = of_lane(0), of_values = of_lane(1);
  const uint32_t key = __shfl_sync(kFullWarp, of_keys.x, 0);
  const uint32_t value = __shfl_sync(kFullWarp, of_values.x, 0);
  float zero = kZero, key_scale = __uint_as_float(key);
  if (!is_one(of_keys, key)) {
    scale_columns(s, scales[0] + column, kTileKeys, kZero);
    if (!is_whole) mask(s, first_key, limit);
    zero = 0, key_scale = 1;
  }
  const bool one_value = is_one(of_values, value);
  // Scales are positive, so that their bits have their order; not a number is above all.
  uint32_t most = value;
  if (!one_value)
    most = __reduce_max_sync(
        kFullWarp,
        max(max(4 * lane < n ? of_values.x : 0, 4 * lane + 1 < n ? of_values.y : 0),
            max(4 * lane + 2 < n ? of_values.z : 0, 4 * lane + 3 < n ? of_values.w : 0)));
  x.most_scale = __uint_as_float(max(is_first ? 0 : __float_as_uint(x.most_scale), most));
  // 1 / value, a power of two as well
  exponentials(s, x, rescale, zero, key_scale, one_value ? log_of(__uint_as_float(value)) : 0,
               one_value ? __uint_as_float(0x7f000000u - value) : 1, is_first);
  if (!one_value) scale_columns(s, scales[1] + column, n - column, 0);
}

__device__ void pack(uint32_t (&p)[16], const float (&s)[64]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int at = i / 2 * 8 + i % 2 * 2;
    p[i] = four_e4m3(s[at], s[at + 1], s[at + 4], s[at + 5]);
  }
}

template <int kD>
__device__ void consume(const Params& p, Shared<kD>& shared) {
  const ConsumerRows rows(p.tiles);
  const int group = rows.group;
  Cursor<kStages> q, v;
  Cursor<kKeyStages> k;
  float s[64], o[kD / 2], rescale[2];
  Softmax x;
  uint32_t probs[16];
  if (group == 1) named_arrive(kTurn, 256);  // the first turn is warpgroup 0's

  for (;; q.next()) {
    mbarrier_wait(&shared.q_full[q.stage], q.phase);
    const Item item = shared.item[q.stage];
    if (item.head < 0) return;
    const int n_tiles = item.keys.n_tiles();
    const SeenKeys seen(item.keys, p.tiles, rows);
    const uint32_t q_tile =
        shared_address(shared.q[q.stage]) + static_cast<uint32_t>(group) * 64 * kD;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int position = item.tile.first + rows.of_head[r];
      const int head = (rows.first + rows.lane / 4 + 8 * r) / p.tiles.head_rows;
      const bool valid =
          head < item.n_heads && position >= item.tile.begin && position < item.tile.end;
      const int64_t at =
          static_cast<int64_t>(position - p.tiles.begin) * p.n_heads + item.head + head;
      x.scale[r] = (valid ? __ldg(p.q_scale + at) : 1.0f) * p.scale_log2;
    }
    const auto soften = [&](int t) {
      softmax(s, x, rescale, shared.scales[k.stage], item.keys.size - t * kTileKeys, t == 0,
              t < seen.n_whole, t * kTileKeys, seen.limit);
      release(&shared.k_empty[k.stage]);
      k.next();
    };

    mbarrier_wait(&shared.k_full[k.stage], k.phase);
    issue_scores<kD>(s, q_tile, shared_address(shared.k[k.stage]));
    wgmma_wait<0>();
    pin(s);
    soften(0);
    pack(probs, s);

    for (int t = 1; t < n_tiles; ++t) {
      mbarrier_wait(&shared.k_full[k.stage], k.phase);
      named_sync(kTurn + group, 256);
      issue_scores<kD>(s, q_tile, shared_address(shared.k[k.stage]));
      mbarrier_wait(&shared.t_full[v.stage], v.phase);
      issue_values(o, probs, shared_address(shared.transposed[v.stage]), t > 1);
      named_arrive(kTurn + (group ^ 1), 256);
      wgmma_wait<1>();
      pin(s);
      soften(t);
      wgmma_wait<0>();
      pin(o);
      release(&shared.t_empty[v.stage]);
      v.next();
      if (__any_sync(0xffffffffu, rescale[0] < 1 || rescale[1] < 1)) {
#pragma unroll
        for (int i = 0; i < kD / 2; ++i) o[i] *= rescale[i / 2 % 2];
      }
      pack(probs, s);
    }
    release(&shared.q_empty[q.stage]);

    mbarrier_wait(&shared.t_full[v.stage], v.phase);
    issue_values(o, probs, shared_address(shared.transposed[v.stage]), n_tiles > 1);
    wgmma_wait<0>();
    pin(o);
    release(&shared.t_empty[v.stage]);
    v.next();
    store_rows<kD>(p, item, shared.out, o, x.sum, rows.first);
    __syncwarp();  // before the next item's rows are written there
  }
}

using Share = Registers<40, 232>;

template <int kD>
__global__ void __launch_bounds__(kPrefillThreads, 1) attend(const __grid_constant__ Params p) {
  extern __shared__ unsigned char raw[];
  const uint32_t misaligned = shared_address(raw) % 1024;
  auto& shared = *reinterpret_cast<Shared<kD>*>(raw + (misaligned == 0 ? 0 : 1024 - misaligned));
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(&shared.q_full[i], 1);
      mbarrier_init(&shared.q_empty[i], 3 + 4 * kConsumers);
      mbarrier_init(&shared.t_full[i], 2);
      mbarrier_init(&shared.t_empty[i], 4 * kConsumers);
    }
    for (int i = 0; i < kValueStages; ++i) {
      mbarrier_init(&shared.v_full[i], 1);
      mbarrier_init(&shared.v_empty[i], 2);
    }
    for (int i = 0; i < kKeyStages; ++i) {
      mbarrier_init(&shared.k_full[i], 1 + 32);  // with every lane's copies of scales
      mbarrier_init(&shared.k_empty[i], 4 * kConsumers);
    }
    fence_barrier_init();
    tma_prefetch(&p.q);
    tma_prefetch(&p.groups);
    tma_prefetch(&p.runs);
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    shrink_registers<Share::kProducer>();
    const int warp = static_cast<int>(threadIdx.x / 32);
    if (warp == 0) {
      produce_keys(p, shared);
    } else if (warp == 1) {
      produce_values(p, shared);
    } else {
      transpose_values(shared, warp - 2);
    }
    no_more_items(p);
  } else {
    grow_registers<Share::kConsumer>();
    consume(p, shared);
  }
}

// Rows of kD numbers; kD / 8 lanes a row.
template <int kD>
__global__ void round_heads(const bf16* from, uint2* to, float* scale, int64_t n) {
  constexpr int kLanes = kD / 8;
  const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x % kLanes);
  const auto v = Numbers<8>::load(from + min(row, n - 1) * kD + 8 * lane);
  float top = 1e-30f;
#pragma unroll
  for (int e = 0; e < 8; ++e) top = fmaxf(top, fabsf(v.x[e]));
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2)
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, step));
  if (row >= n) return;
  const float inverse = 127 / top;
  const auto four = [&](int e) {
    return four_s8(v.x[e] * inverse, v.x[e + 1] * inverse, v.x[e + 2] * inverse,
                   v.x[e + 3] * inverse);
  };
  to[row * kLanes + lane] = {four(0), four(4)};
  if (lane == 0) scale[row] = top / 127;
}

}  // namespace

void CudaBackend::attend_e4m3(const SparseAttention& op) {
  const auto start = [&]<int kD>() {
    const int64_t n_heads = op.q.cols / kD, n = op.q.rows * n_heads;
    auto* q = static_cast<uint2*>(scratch(n * (kD + int64_t{sizeof(float)})));
    auto* q_scale = reinterpret_cast<float*>(q + n * (kD / 8));
    launch("SparseAttention", round_heads<kD>, blocks_for(n * (kD / 8), 256), 256, 0, stream_,
           static_cast<const bf16*>(op.q.data), q, q_scale, n);
    const auto n_rows = static_cast<int64_t>((memory_.highest() - memory_.lowest()) / kD);
    const auto* base = reinterpret_cast<const void*>(memory_.lowest());
    Params p{prefill_params(op),
             {},
             byte_map(base, n_rows, 1, kD, kGroupKeys),
             byte_map(base, n_rows, 1, kD, kTileKeys),
             q_scale};
    p.q = byte_map(q, op.q.rows, n_heads, kD, p.tiles.head_rows);
    p.counter = counters();
    p.map_base = memory_.lowest();
    const unsigned grid = prefill_blocks(p, n_sms_);
    launch("SparseAttention", attend<kD>, grid, kPrefillThreads, sizeof(Shared<kD>) + 1024, stream_,
           p);
  };
  op.kv.layout.head_dim == 128 ? start.operator()<128>() : start.operator()<64>();
}

}  // namespace ei::cuda
