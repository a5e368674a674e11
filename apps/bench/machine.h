#pragma once

#include <cstdint>
#include <string>

namespace ei::bench {

struct Machine {
  std::string cpu;  // as the maker names it
  int64_t cores = 0;
  int64_t memory_bytes = 0;
};
Machine this_machine();

// The most memory this process has held since reset_peak_memory(), mapped files among it.
void reset_peak_memory();
int64_t peak_memory();  // bytes; 0 where the kernel does not tell

}  // namespace ei::bench
