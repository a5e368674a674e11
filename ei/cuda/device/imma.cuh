#pragma once

#include <cstdint>

// Products of bytes by one warp's tensor cores: d = c + a b^T with a 16 rows and b 8 rows of signed
// bytes, 32 or 16 of them a row. Of a, thread l holds 4 bytes from 4 (l % 4) on of rows l / 4 and
// l / 4 + 8, then for 32 those 16 bytes further; of b the same of row l / 4. Of d it holds row l /
// 4 and then row l / 4 + 8, columns 2 (l % 4) and the next.
namespace ei::cuda {

__device__ inline void multiply_bytes_32(int32_t (&d)[4], const uint32_t (&a0)[2],
                                         const uint32_t (&a1)[2], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
      " {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0[0]), "r"(a0[1]), "r"(a1[0]), "r"(a1[1]), "r"(b0), "r"(b1));
}
__device__ inline void multiply_bytes_16(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6},"
      " {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

}  // namespace ei::cuda
