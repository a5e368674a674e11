#include "ei/cpu/amx.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ei::cpu {
namespace {

bool look() {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kVectorsOfBf16 = 1u << 5;
  if ((d & kBf16) == 0 || (d & kTiles) == 0 || (d & kInt8) == 0) return false;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a & kVectorsOfBf16) == 0) return false;
  // The system saves these registers for those who have asked (Linux 5.16).
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool look_for_vnni() {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c & 1u << 11) != 0;
#else
  return false;
#endif
}

}  // namespace

bool has_vnni() {
  static const bool found = look_for_vnni();
  return found;
}

bool has_amx() {
  static const bool found = look();
  return found;
}

}  // namespace ei::cpu
