#pragma once

#include <string>
#include <vector>

namespace ei::cpu {

// The instruction sets this build has kernels for and this machine can run, best first, by
// Highway's names: AVX3 (AVX-512), AVX2, SSE4, SCALAR (no SIMD).
std::vector<std::string> targets();

// For tests and measurements: the kernels of the whole process use this one from now on, or the
// best again if `name` is empty. Throws Error when it is none of targets().
void use_target(const std::string& name);

}  // namespace ei::cpu
