#pragma once

#include <string>
#include <vector>

namespace ei::cpu {

// The instruction sets this build has kernels for and this machine can run, best first: amx (that
// is avx512 and the tile unit, AMX-BF16), avx512, avx2, sse4, scalar (no SIMD).
std::vector<std::string> targets();

// The kernels of the whole process use this one from now on, or the best again if `name` is empty;
// backends made before keep the tile unit or do without it. No backend may compute meanwhile.
// Throws Error when it is none of targets(), nor emulated_amx: for tests, the best of the others
// and plain loops in place of the tile unit.
void use_target(const std::string& name);

// Whether products of many rows, attention and its estimate go through the tile unit.
enum class Tiles { kNone, kAmx, kEmulated };
Tiles tiles();

// What is used, for people: "AVX-512 + AMX-BF16".
std::string target_description(Tiles tiles);

}  // namespace ei::cpu
