#pragma once

#include <cstdint>

#include "ei/cuda/device/ptx.cuh"

// Warpgroup matrix products: 64 rows by N columns by 16 bf16 with float sums, or by 32 signed bytes
// with whole ones. Of the accumulators,
// thread t of the warpgroup holds rows 16 (t/32) + (t%32)/4 and that + 8, columns 8 j + 2 (t%4) and
// the next: d[4j], d[4j+1] of the first row, d[4j+2], d[4j+3] of the second.
namespace ei::cuda {

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of accumulators across this: before products that are issued
// into them, and behind the wait for these.
template <int kN>
__device__ void pin(float (&x)[kN]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kN>
__device__ void pin(int32_t (&x)[kN]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

// An operand in shared memory as the copy engine writes it with its 128-byte swizzle: atoms of 8
// rows x 128 bytes, 1024-byte aligned. A start within an atom's first row is allowed (a step of 16
// columns of a K-major operand is 32 bytes). For K-major operands `row_stride` is the distance of
// groups of 8 rows and `column_stride` is not used; for MN-major ones (the transposed B) the first
// is the distance of groups of 8 k, the second that of 64 columns.
__device__ inline uint64_t operand(uint32_t address, uint32_t row_stride, uint32_t column_stride) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  return field(address) | field(column_stride) << 16 | field(row_stride) << 32 | uint64_t{1} << 62;
}

// A K-major operand of rows of so many bytes in the swizzle of that width: the 16 bytes at c of row
// r of 8 lie at c ^ swizzle(r), counted in 16 bytes. A step of 32 bytes adds 2.
template <int kRowBytes>
__host__ __device__ constexpr int swizzle(int row) {
  return row * kRowBytes / 128 & (kRowBytes / 16 - 1);
}
template <int kRowBytes>
__device__ uint64_t operand_rows(uint32_t address) {
  static_assert(kRowBytes == 32 || kRowBytes == 64 || kRowBytes == 128);
  constexpr uint64_t kSwizzle = kRowBytes == 128 ? 1 : kRowBytes == 64 ? 2 : 3;
  return (operand(address, 8 * kRowBytes, 16) & ~(uint64_t{3} << 62)) | kSwizzle << 62;
}

#define EI_R8(d, i)                                                                           \
  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), \
      "+r"(d[i + 6]), "+r"(d[i + 7])

// d = a b^T, or d +=, of bytes; a [64, 32] in registers, b [128, 32]. Of a, thread t holds 4 bytes
// from 4 (t % 4) on of its two rows, and those 16 further.
__device__ inline void wgmma_64x128(int32_t (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                    int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p;\n}\n"
      : EI_R8(d, 0), EI_R8(d, 8), EI_R8(d, 16), EI_R8(d, 24), EI_R8(d, 32), EI_R8(d, 40),
        EI_R8(d, 48), EI_R8(d, 56)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

#define EI_F8(d, i)                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define EI_F32(d, i) EI_F8(d, i), EI_F8(d, i + 8), EI_F8(d, i + 16), EI_F8(d, i + 24)

// d = a b^T, or d += when `accumulate`; a [64, 16] and b [128, 16] both K-major.
__device__ inline void wgmma_64x128(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n}\n"
      : EI_F32(d, 0), EI_F32(d, 32)
      : "l"(a), "l"(b), "r"(accumulate));
}

// d = a b, or d += ; a [64, 16] in registers, b [16, N] with N contiguous.
__device__ inline void wgmma_64xn(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                  int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"
      : EI_F32(d, 0), EI_F32(d, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}
__device__ inline void wgmma_64xn(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                  int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}\n"
      : EI_F32(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

// Of signed bytes, 32 deep: d += a b^T, the floats of d being bits of whole numbers; a [64, 32] and
// b [128, 32] both K-major.
__device__ inline void wgmma_s8(float (&d)[64], uint64_t a, uint64_t b) {
  int32_t w[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) w[i] = __float_as_int(d[i]);
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p;\n}\n"
      : EI_R8(w, 0), EI_R8(w, 8), EI_R8(w, 16), EI_R8(w, 24), EI_R8(w, 32), EI_R8(w, 40),
        EI_R8(w, 48), EI_R8(w, 56)
      : "l"(a), "l"(b));
#pragma unroll
  for (int i = 0; i < 64; ++i) d[i] = __int_as_float(w[i]);
}

// In e4m3, 32 numbers deep: d = a b^T, or d += ; b [128, 32] K-major, a [64, 32] likewise, or in
// registers: thread t holds columns 4 (t%4) to 4 (t%4) + 3 of rows (t%32)/4 and that + 8, then
// those 16 further.
__device__ inline void wgmma_e4m3(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1;\n}\n"
      : EI_F32(d, 0), EI_F32(d, 32)
      : "l"(a), "l"(b), "r"(accumulate));
}
__device__ inline void wgmma_e4m3(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                  int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1;\n}\n"
      : EI_F32(d, 0), EI_F32(d, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}
__device__ inline void wgmma_e4m3(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                  int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1;\n}\n"
      : EI_F32(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

#undef EI_R8
#undef EI_F32
#undef EI_F8

}  // namespace ei::cuda
