#pragma once

#include <cstdint>
#include <string>

namespace ei::test {

inline constexpr uint32_t kGgufQ4_0 = 2, kGgufQ8_0 = 8;  // the format's numbers

// The shipped model as a GGUF file: its matrices in blocks of 32 numbers of 4 or 8 bits, the
// embedding in 8.
std::string needle_gguf(uint32_t type);

}  // namespace ei::test
