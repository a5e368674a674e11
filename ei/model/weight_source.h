#pragma once

#include <string>
#include <vector>

#include "ei/ops/tensor.h"

namespace ei {

// Which part of a tensor a rank computes with where several share the model: all of it, or a run of
// rows or of columns, of rank 0 the first.
enum class Part : uint8_t { kAll, kRows, kCols };

// Where a model's weights come from, by their names in a Hugging Face checkpoint.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  virtual bool has(const std::string& name) const = 0;
  // Both give this rank's part of a tensor, of this shape, and throw Error unless the tensor is
  // there and has the shape that follows. What a Weight points into lives as long as the source;
  // its numbers are there once it has been read().
  virtual Weight matrix(const std::string& name, int64_t rows, int64_t cols, Part part) = 0;
  virtual std::vector<float> vector(const std::string& name, int64_t size, Part part) = 0;
  // The same weight in memory, for each that matrix() gave. Throws Error when there is less than
  // `available` bytes of it for one that must be converted.
  virtual Weight read(const Weight& weight, int64_t available) = 0;
  // Memory that read() will still take: of those that must be converted.
  virtual int64_t unread_bytes() const { return 0; }
  // Frees the memory of what read() gave, which has been copied.
  virtual void drop(const Weight&) {}
  // Throws Error when the layers have weights that nobody asked for: the checkpoint is then of
  // another model than its configuration says, and leaving them out would give wrong answers in
  // silence.
  virtual void check_complete() const {}
};

}  // namespace ei
