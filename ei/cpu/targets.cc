#include "ei/cpu/targets.h"

#include <hwy/highway.h>

#include <algorithm>
#include <atomic>

#include "ei/base/fail.h"
#include "ei/cpu/amx.h"

namespace ei::cpu {
namespace {

// All of Highway's that have 512 bits are one to us.
constexpr int64_t kAvx512 = 2 * HWY_AVX3 - 1;

std::string name_of(int64_t target) {
  if ((target & kAvx512) != 0) return "avx512";
  std::string name = hwy::TargetName(target);
  std::transform(name.begin(), name.end(), name.begin(), [](char c) { return std::tolower(c); });
  return name;
}

bool has_tiles() {
  return has_amx() && name_of(hwy::SupportedAndGeneratedTargets().front()) == "avx512";
}

std::atomic<Tiles>& chosen_tiles() {
  static std::atomic<Tiles> tiles = has_tiles() ? Tiles::kAmx : Tiles::kNone;
  return tiles;
}

}  // namespace

std::vector<std::string> targets() {
  std::vector<std::string> names;
  if (has_tiles()) names.push_back("amx");
  for (const int64_t target : hwy::SupportedAndGeneratedTargets())
    if (names.empty() || names.back() != name_of(target)) names.push_back(name_of(target));
  return names;
}

void use_target(const std::string& name) {
  hwy::SetSupportedTargetsForTest(0);
  const std::vector<std::string> known = targets();
  const bool emulated = name == "emulated_amx";
  require(name.empty() || emulated || std::find(known.begin(), known.end(), name) != known.end(),
          "this processor runs no kernels of instruction set {}, expected {}", name,
          fmt::join(known, ", "));
  const std::string wanted = name.empty() || emulated ? known.front() : name;
  const bool with_tiles = wanted == "amx";
  int64_t chosen = 0;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets())
    if (chosen == 0 && name_of(target) == (with_tiles ? "avx512" : wanted)) chosen = target;
  chosen_tiles() = emulated ? Tiles::kEmulated : with_tiles ? Tiles::kAmx : Tiles::kNone;
  hwy::SetSupportedTargetsForTest(chosen);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

std::string target_description(Tiles tiles) {
  const std::string name = name_of(hwy::SupportedAndGeneratedTargets().front());
  const std::string vectors = name == "avx512"   ? "AVX-512"
                              : name == "avx2"   ? "AVX2"
                              : name == "sse4"   ? "SSE4"
                              : name == "scalar" ? "no SIMD"
                                                 : name;
  return tiles == Tiles::kNone  ? vectors
         : tiles == Tiles::kAmx ? vectors + " + AMX-BF16"
                                : vectors + " + AMX-BF16 emulated";
}

Tiles tiles() { return chosen_tiles(); }

}  // namespace ei::cpu
