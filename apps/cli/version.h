#pragma once

#include <string>

namespace ei::cli {

// Version and commit, compiler, and the instruction set that this machine runs.
std::string version();

struct Build {
  std::string version, commit, compiler;
};
Build build();

}  // namespace ei::cli
