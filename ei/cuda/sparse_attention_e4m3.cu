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
// sparse_attention_hopper.cu, but for two things. Products take half as long, and the tensor cores
// wait for the softmax: the warpgroups take no turns with them. And e4m3 operands have the numbers
// of a sum side by side, so that two warps transpose every tile of values on its way. In a
// transposed row keys 2 i, 2 i + 1, 2 i + 8 and 2 i + 9 of sixteen are neighbours: these are what a
// thread has of the scores, and becomes one word of the probabilities' operand.
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

// Sums of whole numbers begin here, of which the bits are those of the float 1.5 2^23: as floats
// they are that and what was added, if that is below 2^22, and 127 times 127 times 128 is.
constexpr uint32_t kZeroBits = 0x4b400000;
constexpr float kZero = 0x1.8p23f;

// Of a tile the highest scale of keys and that of values count for all; only where there are others
// as well, numbers are multiplied by their share of it.
struct TileScale {
  float key;
  float log_value, inverse_value;
  uint32_t mixed;  // 1: keys have others, 2: values have
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
  alignas(128) float shares[kKeyStages][2][kTileKeys];          // of keys, of values
  alignas(16) TileScale scale[kKeyStages];
  alignas(8) uint64_t q_full[kStages], q_empty[kStages];
  alignas(8) uint64_t k_full[kKeyStages], k_empty[kKeyStages];
  alignas(8) uint64_t v_full[kValueStages], v_empty[kValueStages];
  alignas(8) uint64_t t_full[kStages], t_empty[kStages];
  Item item[kStages];
};

// The bits of the highest of a tile's scales, by a whole warp; a lane has four, 0 where there is no
// key. Positive numbers have the order of their bits, and what is not a number is no highest.
__device__ inline uint32_t highest(uint4 scales) {
  constexpr uint32_t kInfinity = 0x7f800000;
  uint32_t most = 0;
  for (const uint32_t x : {scales.x, scales.y, scales.z, scales.w})
    if (x < kInfinity) most = max(most, x);
  return __reduce_max_sync(kFullWarp, most);
}
// 1 / scale, a power of two as well.
__device__ inline float inverse_of(uint32_t scale) { return __uint_as_float(0x7f000000u - scale); }

// Writes a lane's four shares of the tile's scale if any lane has others; returns whether.
__device__ inline bool write_shares(uint4 scales, uint32_t most, float* to) {
  bool has_other = false;
  for (const uint32_t x : {scales.x, scales.y, scales.z, scales.w})
    has_other |= x != most && x != 0;
  if (!__any_sync(kFullWarp, has_other)) return false;
  const float inverse = inverse_of(most);
  reinterpret_cast<float4*>(to)[threadIdx.x % 32] =
      make_float4(__uint_as_float(scales.x) * inverse, __uint_as_float(scales.y) * inverse,
                  __uint_as_float(scales.z) * inverse, __uint_as_float(scales.w) * inverse);
  return true;
}

// Copies K or V tile t of an item's keys, and with K the scales of both, by a whole warp.
template <int kD>
__device__ void load_keys(const Params& p, Shared<kD>& shared, const Item& item, int t,
                          bool is_value, int stage, uint32_t phase) {
  const int lane = static_cast<int>(threadIdx.x % 32), page_rows = p.rows.page_rows;
  // Lane l finds rows 4 l to 4 l + 3 of the tile, and lane l < 16 so group l.
  const int j = t * kTileKeys + 4 * lane;
  int map_row = -kGroupKeys;  // outside the maps are zeros
  uint4 scales[2] = {};       // of keys, of values
  if (j < item.keys.size) {
    const int row = row_of(p, item, j), i = row / page_rows, in_page = row - i * page_rows;
    const char* page = p.rows.page<char>(item.head / p.heads_per_kv, i);
    map_row = static_cast<int>((reinterpret_cast<uint64_t>(page) - p.map_base) / kD) + in_page +
              (is_value ? p.rows.first_value : 0);
    if (!is_value) {
      const float* scale = reinterpret_cast<const float*>(page + p.rows.scale_offset) + in_page;
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        uint4& x = scales[which];
        x = __ldg(reinterpret_cast<const uint4*>(scale + which * page_rows));
        if (j + 1 >= item.keys.size) x.y = 0;
        if (j + 2 >= item.keys.size) x.z = 0;
        if (j + 3 >= item.keys.size) x.w = 0;
      }
    }
  }
  map_row = __shfl_sync(kFullWarp, map_row, 2 * lane % 32);
  unsigned char* to = is_value ? shared.v[stage] : shared.k[stage];
  uint64_t* full = is_value ? &shared.v_full[stage] : &shared.k_full[stage];
  mbarrier_wait(is_value ? &shared.v_empty[stage] : &shared.k_empty[stage], phase ^ 1);
  if (lane == 0) mbarrier_arrive_expect(full, Shared<kD>::kTileBytes);
  __syncwarp();
  if (item.keys.is_run(t, page_rows)) {
    if (lane == 0) tma_load_2d(to, &p.runs, full, 0, map_row);
  } else if (lane < kTileKeys / kGroupKeys) {
    tma_load_2d(to + lane * kGroupKeys * kD, &p.groups, full, 0, map_row);
  }
  if (is_value) return;
  const uint32_t key = highest(scales[0]), value = highest(scales[1]);
  const bool keys_mixed = write_shares(scales[0], key, shared.shares[stage][0]);
  const bool values_mixed = write_shares(scales[1], value, shared.shares[stage][1]);
  if (lane == 0)
    shared.scale[stage] = {__uint_as_float(key),
                           static_cast<float>(static_cast<int>(value >> 23) - 127),
                           inverse_of(value), (keys_mixed ? 1u : 0) | (values_mixed ? 2u : 0)};
  mbarrier_arrive(full);
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
      load_keys<kD>(p, shared, item, t, false, k.stage, k.phase);
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
      load_keys<kD>(p, shared, item, t, true, v.stage, v.phase);
  });
}

// Half a tile [128 keys][128 d], of which n keys are the list's, to [128 d][128 keys]: even or odd
// sixteens of keys. Rows of the cache behind its last one hold anything, NaNs too: they become 0.
template <int kD>
__device__ void transpose(const unsigned char* from, unsigned char* to, int n, int which) {
  const int lane = static_cast<int>(threadIdx.x % 32), matrix = lane / 8, row = lane % 8;
  // Matrices are keys 0 to 7 of sixteen columns, keys 8 to 15, and those of the next columns.
  from += (matrix % 2 * 8 + row) * kD;
  const int chunk = matrix / 2 ^ swizzle<kD>(row);
  // A lane has columns 2 (lane / 4) and the next of them. Of both go to one matrix the first for
  // the upper half of its rows and the second for the lower, so that its rows lie in banks of their
  // own, and to the other what is left.
  const int d = 16 * (matrix / 2) + 2 * row + (matrix + row / 4) % 2;
  const uint32_t even = lane < 16 ? 0x6420 : 0x7531, odd = lane < 16 ? 0x7531 : 0x6420;
  to += d * kTileKeys;
  for (int q = which; q < kTileKeys / 16; q += 2) {
    constexpr int kSteps = kD / 32;
    uint32_t pairs[kSteps][4];
#pragma unroll
    for (int i = 0; i < kSteps; ++i)
      ldmatrix_x4_transposed(pairs[i], from + 16 * q * kD + (chunk ^ 2 * i) * 16);
    if (16 * q + 16 > n) {
      const int key = 16 * q + lane % 4 * 2;
      const auto kept = [&](int first) {
        return (first < n ? 0xffffu : 0) | (first + 1 < n ? 0xffff0000u : 0);
      };
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (int m = 0; m < 4; ++m) pairs[i][m] &= kept(key + m % 2 * 8);
      }
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const uint32_t(&x)[4] = pairs[i];
      const uint32_t words[4] = {__byte_perm(x[0], x[1], even), __byte_perm(x[0], x[1], odd),
                                 __byte_perm(x[2], x[3], even), __byte_perm(x[2], x[3], odd)};
      stmatrix_x4(to + 32 * i * kTileKeys + (q ^ d % 8) * 16, words);
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

__device__ inline void clear_scores(float (&s)[64]) {
#pragma unroll
  for (float& x : s) x = __uint_as_float(kZeroBits);
  pin(s);
}

// The same, of numbers: 0 x + kZero, because constants are moved at half the rate of that.
__device__ inline void begin_again(float (&s)[64]) {
#pragma unroll
  for (float& x : s) asm volatile("fma.rn.f32 %0, %0, 0f00000000, 0f4B400000;" : "+f"(x));
}

// s += Q K^T of this warpgroup's 64 queries.
template <int kD>
__device__ void issue_scores(float (&s)[64], uint32_t q, uint32_t k) {
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
  float log_value;  // the logarithm of the values' highest scale so far
};

// Multiplies what columns are above `zero` by their shares of the tile's scale.
__device__ inline void scale_columns(float (&s)[64], const float* shares, float zero) {
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    const float2 share = *reinterpret_cast<const float2*>(shares + 8 * j);
    const float2 rest = {fmaf(-zero, share.x, zero), fmaf(-zero, share.y, zero)};
    s[4 * j] = fmaf(s[4 * j], share.x, rest.x);
    s[4 * j + 1] = fmaf(s[4 * j + 1], share.y, rest.y);
    s[4 * j + 2] = fmaf(s[4 * j + 2], share.x, rest.x);
    s[4 * j + 3] = fmaf(s[4 * j + 3], share.y, rest.y);
  }
}

// Turns sums from kZero on into 2^(score - offset), times the tile's scale of values, and returns
// in `rescale` what earlier sums are to be multiplied by.
__device__ inline void exponentials(float (&s)[64], Softmax& x, float (&rescale)[2],
                                    const TileScale& tile, bool is_first) {
  // Floats from kZero / 2 on and minus infinity have the order of their bits.
  int most[2] = {__float_as_int(s[0]), __float_as_int(s[2])};
#pragma unroll
  for (int j = 0; j < 16; ++j) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      most[r] = __vimax3_s32(most[r], __float_as_int(s[4 * j + 2 * r]),
                             __float_as_int(s[4 * j + 2 * r + 1]));
  }
#pragma unroll
  for (int step = 1; step <= 2; ++step) {
#pragma unroll
    for (int r = 0; r < 2; ++r) most[r] = max(most[r], __shfl_xor_sync(kFullWarp, most[r], step));
  }
  x.log_value = is_first ? tile.log_value : fmaxf(x.log_value, tile.log_value);
  float scale[2], of_tile[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    scale[r] = x.scale[r] * tile.key;
    float top = (__int_as_float(most[r]) - kZero) * scale[r];
    if (!is_first) top = fmaxf(top, x.top[r]);
    const float offset = top + x.log_value - kLogMost;
    rescale[r] = is_first ? 0.0f : exp2_approx(x.offset[r] - offset);
    x.top[r] = top;
    x.offset[r] = offset;
    of_tile[r] = fmaf(kZero, scale[r], offset - tile.log_value);
  }
  float part[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < 16; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float& y = s[4 * j + e];
      y = exp2_approx(fmaf(y, scale[e / 2], -of_tile[e / 2]));
      part[e / 2] += y;
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
    x.sum[r] = (is_first ? 0.0f : x.sum[r] * rescale[r]) + part[r] * tile.inverse_value;
}

// Turns the sums of a tile into what is multiplied with its values; what rows may not see is hidden
// from row limits on.
__device__ void softmax(float (&s)[64], Softmax& x, float (&rescale)[2], const TileScale& tile,
                        const float (*shares)[kTileKeys], bool is_first, bool is_whole,
                        int first_key, const int (&limit)[2]) {
  const int column = static_cast<int>(threadIdx.x % 4) * 2;
  if (tile.mixed & 1 || !is_whole) [[unlikely]] {
    if (tile.mixed & 1) scale_columns(s, shares[0] + column, kZero);
    if (!is_whole) mask(s, first_key, limit);
  }
  exponentials(s, x, rescale, tile, is_first);
  if (tile.mixed & 2) scale_columns(s, shares[1] + column, 0);
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
      softmax(s, x, rescale, shared.scale[k.stage], shared.shares[k.stage], t == 0,
              t < seen.n_whole, t * kTileKeys, seen.limit);
      release(&shared.k_empty[k.stage]);
      k.next();
    };
    clear_scores(s);

    mbarrier_wait(&shared.k_full[k.stage], k.phase);
    issue_scores<kD>(s, q_tile, shared_address(shared.k[k.stage]));
    wgmma_wait<0>();
    pin(s);
    soften(0);
    pack(probs, s);
    clear_scores(s);

    for (int t = 1; t < n_tiles; ++t) {
      mbarrier_wait(&shared.k_full[k.stage], k.phase);
      issue_scores<kD>(s, q_tile, shared_address(shared.k[k.stage]));
      mbarrier_wait(&shared.t_full[v.stage], v.phase);
      issue_values(o, probs, shared_address(shared.transposed[v.stage]), t > 1);
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
      begin_again(s);
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
      mbarrier_init(&shared.k_full[i], 1 + 32);  // and every lane, for its shares
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
