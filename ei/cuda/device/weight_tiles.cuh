#pragma once

#include "ei/cuda/device/weights.cuh"

// How integer weights lie on the GPU: in tiles of 16 rows by 256 columns, of as many bytes as their
// blocks have, one row of tiles behind the other; rows and columns that fill up the last tiles are
// zeros. A warp reads a tile as it will be an operand of the tensor cores, m16n8k16: of its 16
// steps of 16 columns, lane l has numbers 4 (l % 4) to 4 (l % 4) + 3 of rows l / 4 and l / 4 + 8,
// one word each with a number a byte. Words of several steps share one, bit by bit of their bytes,
// where numbers have fewer bits. Behind the numbers are what blocks hold besides, row by row.
namespace ei::cuda {

inline constexpr int kTileRows = 16, kTileColumns = 256, kTileSteps = 16;

template <WeightFormat kFormat>
struct Tile {
  using enum WeightFormat;
  // Of a number, in two planes.
  static constexpr int kBits = kFormat == kQ8_0 || kFormat == kINT8   ? 8
                               : kFormat == kQ2_K || kFormat == kQ3_K ? 2
                                                                      : 4;
  static constexpr int kMoreBits =
      kFormat == kQ6_K                                                               ? 2
      : kFormat == kQ5_0 || kFormat == kQ5_1 || kFormat == kQ5_K || kFormat == kQ3_K ? 1
                                                                                     : 0;
  // Of 16 bytes, that a lane has; a plane has as many as bits.
  static constexpr int kVectors = kBits + kMoreBits;
  static constexpr int kHeadsAt = kVectors * 32 * 16;
  static constexpr int kSize = static_cast<int>(block_of(kFormat).weights);
  static constexpr int kBlockBytes = static_cast<int>(block_of(kFormat).bytes);
  static constexpr int kRowBytes = kTileColumns / kSize * kBlockBytes;
  static constexpr int kBytes = kTileRows * kRowBytes;
  static constexpr int kHeadBytes = kRowBytes - kTileColumns * kVectors / 8;  // of a row
  static constexpr int kGroup = static_cast<int>(group_of(kFormat));
  static constexpr bool kOffsets = kSurplus<kFormat> != 0;

  // Where byte i of a row's head is in its blocks.
  static constexpr int head_from(int i) {
    if constexpr (kSize == 32) {
      constexpr int kOfBlock = kHeadBytes * kSize / kTileColumns;
      return i / kOfBlock * kBlockBytes + i % kOfBlock;
    } else if constexpr (kFormat == kQ2_K) {
      return i < 16 ? i : 64 + i;
    } else {
      return i + (kFormat == kQ6_K ? 192 : kFormat == kQ3_K ? 96 : 0);
    }
  }
};

// The place of a step's numbers in a plane: a word of a lane's and a bit of its bytes.
template <int kBits>
struct InPlane {
  static constexpr int kSteps = 8 / kBits;  // in a word
  static constexpr uint32_t kMask = (1u << kBits) - 1;
  static constexpr uint32_t kMasks = kMask * 0x01010101u;
  int vector, word, shift;

  // half: 0 for row l / 4, 1 for row l / 4 + 8.
  __device__ constexpr InPlane(int step, int half)
      : vector(step / kSteps / 2),
        word(step / kSteps % 2 * 2 + half),
        shift(kBits * (step % kSteps)) {}
  __device__ uint32_t of(uint32_t from) const { return from >> shift & kMasks; }
};

// A step's numbers of a lane, one a byte.
template <WeightFormat kFormat>
__device__ uint32_t numbers_of(const uint4 (&held)[Tile<kFormat>::kVectors], int step, int half) {
  using T = Tile<kFormat>;
  const InPlane<T::kBits> at(step, half);
  const uint32_t low = at.of(word_of(held[at.vector], at.word));
  if constexpr (T::kMoreBits == 0) {
    return low;
  } else {
    const InPlane<T::kMoreBits> more(step, half);
    return low | more.of(word_of(held[T::kBits + more.vector], more.word)) << T::kBits;
  }
}

// How bf16_pairs() of groups 2 i and 2 i + 1 of a tile's row become weights: scale * pair - offset.
template <WeightFormat kFormat>
struct LinePair {
  float2 line[2];  // scale, offset

  LinePair() = default;
  __device__ LinePair(const uint8_t* head, int i) {
    using enum WeightFormat;
    float scale[2], offset[2] = {};
    const auto halves = [](uint32_t two) {
      __half2 pair;
      memcpy(&pair, &two, 4);
      return __half22float2(pair);
    };
    const auto half = [](const uint8_t* at) {
      return __half2float(*reinterpret_cast<const __half*>(at));
    };
    const auto two_bytes = [](const uint8_t* at) {
      return uint32_t{*reinterpret_cast<const uint16_t*>(at)};
    };
    if constexpr (kFormat == kINT8) {
      const auto d = reinterpret_cast<const float2*>(head)[i];
      scale[0] = d.x, scale[1] = d.y;
    } else if constexpr (kFormat == kQ4_1 || kFormat == kQ5_1) {
      const uint2 both = reinterpret_cast<const uint2*>(head)[i];
      const float2 first = halves(both.x), second = halves(both.y);
      scale[0] = first.x, scale[1] = second.x;
      offset[0] = -first.y, offset[1] = -second.y;
    } else if constexpr (Tile<kFormat>::kSize == 32) {
      const float2 d = halves(reinterpret_cast<const uint32_t*>(head)[i]);
      scale[0] = d.x, scale[1] = d.y;
    } else if constexpr (kFormat == kQ4_K || kFormat == kQ5_K) {
      const uint4 all = *reinterpret_cast<const uint4*>(head);
      const float2 d = halves(all.x);
      const int shift = i % 2 * 16;
      const uint32_t a = all.y >> shift, b = all.z >> shift, c = all.w >> shift;
      const uint32_t scales = i < 2 ? a & 0x3F3Fu : (c & 0x0F0Fu) | (a >> 2 & 0x3030u);
      const uint32_t offsets = i < 2 ? b & 0x3F3Fu : (c >> 4 & 0x0F0Fu) | (b >> 2 & 0x3030u);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        scale[e] = d.x * static_cast<float>(scales >> 8 * e & 63);
        offset[e] = d.y * static_cast<float>(offsets >> 8 * e & 63);
      }
    } else if constexpr (kFormat == kQ6_K) {
      const float d = half(head + 16);
      const uint32_t both = two_bytes(head + 2 * i);
#pragma unroll
      for (int e = 0; e < 2; ++e)
        scale[e] = d * static_cast<float>(static_cast<int8_t>(both >> 8 * e));
    } else if constexpr (kFormat == kQ2_K) {
      const float2 d = halves(*reinterpret_cast<const uint32_t*>(head + 16));
      const uint32_t both = two_bytes(head + 2 * i);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        scale[e] = d.x * static_cast<float>(both >> 8 * e & 15);
        offset[e] = d.y * static_cast<float>(both >> (8 * e + 4) & 15);
      }
    } else if constexpr (kFormat == kQ3_K) {
      const float d = half(head + 12);
      const uint32_t low = two_bytes(head + 2 * (i % 4)) >> i / 4 * 4;
      const uint32_t high = two_bytes(head + 8 + 2 * (i % 2)) >> i / 2 * 2;
#pragma unroll
      for (int e = 0; e < 2; ++e)
        scale[e] = d * static_cast<float>(
                           static_cast<int>((low >> 8 * e & 15) | (high >> 8 * e & 3) << 4) - 32);
    } else {
      static_assert(kFormat == kIQ4_XS);
      const uint2 all = *reinterpret_cast<const uint2*>(head);
      const float d = halves(all.x).x;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const uint32_t low = all.y >> (8 * i + 4 * e) & 15,
                       high = all.x >> (16 + 4 * i + 2 * e) & 3;
        scale[e] = d * static_cast<float>(static_cast<int>(low | high << 4) - 32);
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) line[e] = {scale[e], offset[e] + scale[e] * kSurplus<kFormat>};
  }
};

}  // namespace ei::cuda
