#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace ei {

// One tensor of a file, row-major, little-endian. Any type that the file's format defines is
// listed; what cannot be computed with is refused only by who wants it.
struct TensorInfo {
  std::string dtype;                // as the format names it: "BF16", "F32", "I64", "Q4_K", ...
  std::vector<int64_t> shape;       // [outer, ..., inner]; empty: a scalar
  std::span<const std::byte> data;  // not aligned to anything

  int64_t size() const {  // elements
    int64_t n = 1;
    for (const int64_t dim : shape) n *= dim;
    return n;
  }
};
using TensorMap = std::map<std::string, TensorInfo, std::less<>>;

// One of the tensors of a model that may lie in several files.
struct TensorEntry {
  const TensorInfo* tensor = nullptr;
  const std::string* file = nullptr;  // for messages
};

}  // namespace ei
