#include <algorithm>

#include "ei/cuda/cuda_backend.h"
#include "ei/cuda/device/numbers.cuh"
#include "ei/cuda/device/wgmma.cuh"
#include "ei/cuda/launch.cuh"
#include "ei/cuda/prefill_items.cuh"
#include "ei/cuda/tensor_maps.h"

// Prefill attention for bf16 pages and heads of 64 or 128. A thread block is resident on every
// multiprocessor and takes (query tile, head) pairs from a counter, last tiles first: they see the
// most keys. Heads that share a KV head share a tile where segments are short. One warpgroup feeds
// two others through rings of shared memory: a warp copies Q and K tiles, a second V tiles. A key
// tile is one box when its rows are a run within a page and 16 boxes of 8 rows when gathered; both
// land in the same layout. Each consumer warpgroup owns 64 queries and keeps scores, probabilities
// and sums in registers; it issues the scores of tile t together with the values of tile t - 1, and
// the two take turns so that one's products hide the other's softmax.
namespace ei::cuda {
namespace {

constexpr int kStages = 2;
constexpr int kThreads = kPrefillThreads;

struct Params : PrefillParams {
  CUtensorMap q;       // boxes of a tile's rows of a head, 64 columns
  CUtensorMap groups;  // boxes of 8 cache rows
  CUtensorMap runs;    // boxes of 128 cache rows
};

template <int kD>
struct Shared {
  static constexpr int kTileBytes = kTileKeys * kD * 2;
  alignas(1024) unsigned char q[kStages][kTileBytes];  // [halves][128][128 bytes]
  alignas(1024) unsigned char k[kStages][kTileBytes];  // [16 groups][halves][8][128 bytes]
  alignas(1024) unsigned char v[kStages][kTileBytes];
  alignas(8) uint64_t q_full[kStages], q_empty[kStages];
  alignas(8) uint64_t k_full[kStages], k_empty[kStages];
  alignas(8) uint64_t v_full[kStages], v_empty[kStages];
  Item item[kStages];  // guarded by the barriers of q
};

// Copies K or V tile t of an item's keys, by a whole warp.
template <int kD>
__device__ void load_keys(const Params& p, const Item& item, int t, bool is_value,
                          unsigned char* to, uint64_t* full, uint64_t* empty, uint32_t phase) {
  constexpr int kGroupBytes = kGroupKeys * kD * 2;
  constexpr int kGroups = kTileKeys / kGroupKeys;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int kv_head = item.head / p.heads_per_kv;
  const KeyList& keys = item.keys;
  const bool is_run = keys.is_run(t, p.rows.page_rows);

  // Lane l < 16 finds group l of the tile; a group outside the maps reads zeros.
  int group = -1;
  const int j = t * kTileKeys + lane * kGroupKeys;
  if (lane < kGroups && j < keys.size) {
    const int row = row_of(p, item, j), page_rows = p.rows.page_rows;
    const auto page = reinterpret_cast<uint64_t>(p.rows.page<void>(kv_head, row / page_rows));
    group = static_cast<int>((page - p.map_base) / kGroupBytes) +
            (row % page_rows + (is_value ? p.rows.first_value : 0)) / kGroupKeys;
  }

  mbarrier_wait(empty, phase ^ 1);
  if (lane == 0) mbarrier_arrive_expect(full, Shared<kD>::kTileBytes);
  __syncwarp();
  if (is_run) {
    if (lane == 0) tma_load_4d(to, &p.runs, full, 0, 0, 0, group);
  } else if (lane < kGroups) {
    tma_load_4d(to + lane * kGroupBytes, &p.groups, full, 0, 0, 0, group);
  }
}

// Warp 0 takes items and copies Q and K; warp 1 copies V.
template <int kD>
__device__ void produce(const Params& p, Shared<kD>& shared) {
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  Cursor<kStages> q, kv;
  if (warp > 1) return;

  for (;; q.next()) {
    Item item;
    if (warp == 0) {
      item = next_item(p);
      mbarrier_wait(&shared.q_empty[q.stage], q.phase ^ 1);
      if (lane == 0) {
        shared.item[q.stage] = item;
        if (item.head < 0) {
          mbarrier_arrive(&shared.q_full[q.stage]);
        } else {
          const int bytes = p.tiles.head_rows * 128;  // of a box
          mbarrier_arrive_expect(&shared.q_full[q.stage],
                                 static_cast<uint32_t>(item.n_heads * (kD / 64) * bytes));
          for (int i = 0; i < item.n_heads * (kD / 64); ++i)
            tma_load_3d(
                shared.q[q.stage] + i % (kD / 64) * kTileQueries * 128 + i / (kD / 64) * bytes,
                &p.q, &shared.q_full[q.stage], 0, item.tile.first - p.tiles.begin,
                item.head * (kD / 64) + i);
        }
      }
      __syncwarp();
    } else {
      mbarrier_wait(&shared.q_full[q.stage], q.phase);
      item = shared.item[q.stage];
      __syncwarp();
      if (lane == 0) mbarrier_arrive(&shared.q_empty[q.stage]);
    }
    if (item.head < 0) return;

    for (int t = 0; t < item.keys.n_tiles(); ++t, kv.next()) {
      if (warp == 0) {
        load_keys<kD>(p, item, t, false, shared.k[kv.stage], &shared.k_full[kv.stage],
                      &shared.k_empty[kv.stage], kv.phase);
      } else {
        load_keys<kD>(p, item, t, true, shared.v[kv.stage], &shared.v_full[kv.stage],
                      &shared.v_empty[kv.stage], kv.phase);
      }
    }
  }
}

// s = Q K^T of this warpgroup's 64 queries.
template <int kD>
__device__ void issue_scores(float (&s)[64], uint32_t q, uint32_t k) {
  pin(s);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kD / 16; ++i) {
    const uint32_t step = static_cast<uint32_t>(i % 4) * 32, half = static_cast<uint32_t>(i / 4);
    wgmma_64x128(s, operand(q + half * kTileQueries * 128 + step, 1024, 16),
                 operand(k + half * 1024 + step, kD / 64 * 1024, 16), i > 0);
  }
  wgmma_commit();
}

// o += P V, or o = P V.
template <int kD>
__device__ void issue_values(float (&o)[kD / 2], const uint32_t (&p)[32], uint32_t v,
                             bool accumulate) {
  pin(o);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kTileKeys / 16; ++i) {
    const uint32_t a[4] = {p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
    wgmma_64xn(o, a, operand(v + static_cast<uint32_t>(i) * (kD / 64) * 2048, kD / 64 * 1024, 1024),
               i > 0 || accumulate);
  }
  wgmma_commit();
}

// Online softmax of one tile of scores: turns s into probabilities against `top` and returns in
// `rescale` what earlier sums are to be multiplied by. `top` follows a row's maximum only when that
// passes it by more than 2^kSlack: until then probabilities are up to so large, which changes no
// relative error, and sums can mostly stay as they are.
constexpr float kSlack = 8;

__device__ inline void softmax(float (&s)[64], float (&top)[2], float (&sum)[2],
                               float (&rescale)[2], float scale_log2, bool is_first) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float m = is_first ? -INFINITY : top[r];
#pragma unroll
    for (int j = 0; j < 16; ++j) m = fmaxf(m, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    if (!is_first && (m - top[r]) * scale_log2 <= kSlack) m = top[r];
    rescale[r] = is_first ? 0.0f : exp2_approx((top[r] - m) * scale_log2);
    top[r] = m;
    const float offset = m * scale_log2;
    float part = 0;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[4 * j + 2 * r + e];
        x = exp2_approx(fmaf(x, scale_log2, -offset));
        part += x;
      }
    }
    sum[r] = (is_first ? 0.0f : sum[r] * rescale[r]) + part;
  }
}

__device__ inline void pack(uint32_t (&p)[32], const float (&s)[64]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

// Rows of the cache behind its last one hold anything, NaNs too, and 0 x NaN is NaN: the values of
// the list's last group behind its end are overwritten with zeros.
template <int kD>
__device__ void clear_behind(unsigned char* v, int size) {
  const int rest = size % kGroupKeys, group = size % kTileKeys / kGroupKeys;
  const int n_chunks = (kGroupKeys - rest) * (kD / 8);
  for (int i = static_cast<int>(threadIdx.x) - 128; i < n_chunks; i += 128 * kConsumers) {
    const int row = rest + i / (kD / 8), chunk = i % (kD / 8);
    auto* at = v + ((group * (kD / 64) + chunk / 8) * kGroupKeys + row) * 128 + chunk % 8 * 16;
    *reinterpret_cast<uint4*>(at) = make_uint4(0, 0, 0, 0);
  }
}

template <int kD>
__device__ void consume(const Params& p, Shared<kD>& shared) {
  const ConsumerRows rows(p.tiles);
  const int group = rows.group;
  Cursor<kStages> q, k, v;
  float s[64], o[kD / 2], top[2], sum[2], rescale[2];
  uint32_t probs[32];
  if (group == 1) named_arrive(kTurn, 256);  // the first turn is warpgroup 0's

  for (;; q.next()) {
    mbarrier_wait(&shared.q_full[q.stage], q.phase);
    const Item item = shared.item[q.stage];
    if (item.head < 0) return;
    const int n_tiles = item.keys.n_tiles();
    const SeenKeys seen(item.keys, p.tiles, rows);
    const uint32_t q_tile = shared_address(shared.q[q.stage]) + static_cast<uint32_t>(group) * 8192;

    mbarrier_wait(&shared.k_full[k.stage], k.phase);
    issue_scores<kD>(s, q_tile, shared_address(shared.k[k.stage]));
    wgmma_wait<0>();
    pin(s);
    release(&shared.k_empty[k.stage]);
    k.next();
    if (seen.n_whole < 1) mask(s, 0, seen.limit);
    softmax(s, top, sum, rescale, p.scale_log2, true);
    pack(probs, s);

    if (n_tiles > 1) mbarrier_wait(&shared.k_full[k.stage], k.phase);
    for (int t = 1; t < n_tiles; ++t) {
      named_sync(kTurn + group, 256);
      issue_scores<kD>(s, q_tile, shared_address(shared.k[k.stage]));
      mbarrier_wait(&shared.v_full[v.stage], v.phase);
      issue_values<kD>(o, probs, shared_address(shared.v[v.stage]), t > 1);
      named_arrive(kTurn + (group ^ 1), 256);
      wgmma_wait<1>();
      pin(s);
      release(&shared.k_empty[k.stage]);
      k.next();
      if (t >= seen.n_whole) mask(s, t * kTileKeys, seen.limit);
      softmax(s, top, sum, rescale, p.scale_log2, false);
      // The next keys. A branch here keeps the compiler from making all exponentials behind the
      // wait for the values, which they are to overlap.
      if (t + 1 < n_tiles) mbarrier_wait(&shared.k_full[k.stage], k.phase);
      wgmma_wait<0>();
      pin(o);
      release(&shared.v_empty[v.stage]);
      v.next();
      if (__any_sync(0xffffffffu, rescale[0] < 1 || rescale[1] < 1)) {
#pragma unroll
        for (int i = 0; i < kD / 2; ++i) o[i] *= rescale[i / 2 % 2];
      }
      pack(probs, s);
    }

    mbarrier_wait(&shared.v_full[v.stage], v.phase);
    if (item.tile.end == p.tiles.end && item.keys.size % kGroupKeys != 0) {
      clear_behind<kD>(shared.v[v.stage], item.keys.size);
      fence_async_proxy();
      named_sync(kAllConsumers, 128 * kConsumers);
    }
    issue_values<kD>(o, probs, shared_address(shared.v[v.stage]), n_tiles > 1);
    wgmma_wait<0>();
    pin(o);
    release(&shared.v_empty[v.stage]);
    v.next();

    named_sync(kOwn + group, 128);  // the whole warpgroup is done with its queries
    store_rows<kD>(p, item, shared.q[q.stage], o, sum, rows.first);
    fence_async_proxy();  // before the copy engine writes the next Q there
    release(&shared.q_empty[q.stage]);
  }
}

using Share = Registers<40, 232>;

template <int kD>
__global__ void __launch_bounds__(kThreads, 1) attend(const __grid_constant__ Params p) {
  extern __shared__ unsigned char raw[];
  const uint32_t misaligned = shared_address(raw) % 1024;
  auto& shared = *reinterpret_cast<Shared<kD>*>(raw + (misaligned == 0 ? 0 : 1024 - misaligned));
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(&shared.q_full[i], 1);
      mbarrier_init(&shared.q_empty[i], 1 + 4 * kConsumers);
      mbarrier_init(&shared.k_full[i], 1);
      mbarrier_init(&shared.k_empty[i], 4 * kConsumers);
      mbarrier_init(&shared.v_full[i], 1);
      mbarrier_init(&shared.v_empty[i], 4 * kConsumers);
    }
    fence_barrier_init();
    tma_prefetch(&p.q);
    tma_prefetch(&p.groups);
    tma_prefetch(&p.runs);
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    shrink_registers<Share::kProducer>();
    produce(p, shared);
    no_more_items(p);
  } else {
    grow_registers<Share::kConsumer>();
    consume<kD>(p, shared);
  }
}

}  // namespace

void CudaBackend::attend_hopper(const SparseAttention& op) {
  const int64_t d = op.kv.layout.head_dim;
  Params p{prefill_params(op),
           {},
           row_group_map(memory_, d, 1),
           row_group_map(memory_, d, kTileKeys / kGroupKeys)};
  p.q = query_map(op.q, p.tiles.head_rows);
  p.counter = counters();
  p.map_base = memory_.lowest();
  const unsigned grid = prefill_blocks(p, n_sms_);
  if (d == 128) {
    launch("SparseAttention", attend<128>, grid, kThreads, sizeof(Shared<128>) + 1024, stream_, p);
  } else {
    launch("SparseAttention", attend<64>, grid, kThreads, sizeof(Shared<64>) + 1024, stream_, p);
  }
}

}  // namespace ei::cuda
