#pragma once

#include <cstdint>
#include <cstring>

#include "ei/base/half.h"

// The tile unit of x86 processors (AMX-BF16 and AMX-INT8, since Sapphire Rapids): eight registers
// of 16 rows of 64 bytes, and products of two of them that are added to a third:
//   c[i][j] += sum_k a[i][k] b[k / 2][2 j + k % 2]
// for a of 16 x 32 numbers in bf16, b of 16 pairs of rows by 16 columns, a column's pair side by
// side, and c of 16 x 16 floats. Of bytes, a's without and b's with a sign, four are side by side
// and c are whole numbers.
namespace ei::cpu {

// Rows and columns of a register of floats; bytes of a row; numbers in bf16 of a row, which is how
// deep a product is; and numbers in bf16 of a register.
inline constexpr int64_t kAmxRows = 16;
inline constexpr int64_t kAmxRowBytes = 64;
inline constexpr int64_t kAmxDepth = 32;
inline constexpr int64_t kAmxTile = kAmxRows * kAmxDepth;

// Whether the processor has it, and AVX512-BF16 beside it, and the system lets this process use it,
// which is asked for once.
bool has_amx();

// Whether the processor multiplies bytes four at a time in vectors of 512 bits (AVX512-VNNI).
bool has_vnni();

#if defined(__x86_64__)
// Inline assembly, since the compilers' intrinsics want their callers compiled for this processor.
struct Amx {
  // Between the two a thread has the registers; without the second the system saves them for it.
  // Rows of 4 and 5 have as many bytes as products of theirs are deep, 6 and 7 rows for as many.
  static void begin(int64_t deep = kAmxRowBytes) {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    for (int t = 4; t < 6; ++t) shapes.row_bytes[t] = static_cast<uint16_t>(deep);
    for (int t = 6; t < 8; ++t) shapes.rows[t] = static_cast<uint8_t>(deep / 4);
    asm volatile("ldtilecfg %0" : : "m"(shapes));
  }
  static void end() { asm volatile("tilerelease"); }

  template <int kTile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  // Rows that are `stride` bytes apart.
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(kTile), "r"(from), "r"(stride) : "memory");
  }
  template <int kTile>
  static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(kTile), "r"(to), "r"(stride) : "memory");
  }
  template <int kC, int kA, int kB>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
  template <int kC, int kA, int kB>
  static void multiply_bytes() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
};

#endif

// The same in plain loops, so that what is written for the unit is tested on any machine.
struct EmulatedAmx {
  static void begin(int64_t = kAmxRowBytes) {}
  static void end() {}

  template <int kTile>
  static void zero() {
    std::memset(tile_[kTile], 0, sizeof tile_[kTile]);
  }
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    for (int64_t i = 0; i < kAmxRows; ++i)
      std::memcpy(tile_[kTile][i], static_cast<const char*>(from) + i * stride, 64);
  }
  template <int kTile>
  static void store(void* to, int64_t stride) {
    for (int64_t i = 0; i < kAmxRows; ++i)
      std::memcpy(static_cast<char*>(to) + i * stride, tile_[kTile][i], 64);
  }
  template <int kC, int kA, int kB>
  static void multiply() {
    const auto number = [](uint32_t pair, int64_t k) {
      return from_bf16(static_cast<uint16_t>(k == 0 ? pair : pair >> 16));
    };
    for (int64_t i = 0; i < kAmxRows; ++i)
      for (int64_t p = 0; p < kAmxDepth / 2; ++p)
        for (int64_t j = 0; j < kAmxRows; ++j) {
          float sum = std::bit_cast<float>(tile_[kC][i][j]);
          for (int64_t k = 0; k < 2; ++k)
            sum += number(tile_[kA][i][p], k) * number(tile_[kB][p][j], k);
          tile_[kC][i][j] = std::bit_cast<uint32_t>(sum);
        }
  }
  template <int kC, int kA, int kB>
  static void multiply_bytes() {
    for (int64_t i = 0; i < kAmxRows; ++i)
      for (int64_t p = 0; p < kAmxRows; ++p)
        for (int64_t j = 0; j < kAmxRows; ++j)
          for (int64_t k = 0; k < 32; k += 8)
            tile_[kC][i][j] +=
                static_cast<uint32_t>(static_cast<int32_t>(tile_[kA][i][p] >> k & 255) *
                                      static_cast<int8_t>(tile_[kB][p][j] >> k & 255));
  }

 private:
  inline static thread_local uint32_t tile_[8][kAmxRows][16];
};

#if !defined(__x86_64__)
using Amx = EmulatedAmx;
#endif

}  // namespace ei::cpu
