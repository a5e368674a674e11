#pragma once

#include <cstdint>
#include <vector>

#include "ei/cache/kv_cache.h"
#include "ei/ops/backend.h"
#include "ei/ops/buffer.h"
#include "ei/ops/weight_format.h"

namespace ei::bench {

// Rows of activations, owned.
class ActArray {
 public:
  ActArray(Backend& backend, int64_t rows, int64_t cols)
      : rows_(rows),
        cols_(cols),
        elem_bytes_(backend.act_bytes()),
        buffer_(backend, rows * cols * elem_bytes_) {}

  Act act() const { return {buffer_.data(), rows_, cols_, elem_bytes_}; }

 private:
  Weight on_host(int64_t rows, int64_t cols, WeightFormat format);
  int64_t rows_, cols_, elem_bytes_;
  Buffer buffer_;
};

// Data to measure ops on: its values matter only in that none is special and few are equal.
class BenchData {
 public:
  explicit BenchData(Backend& backend) : backend_(backend) {}

  // About uniform in [-1, 1].
  ActArray act(int64_t rows, int64_t cols);
  // A layer's matrix and an embedding or head, as models place them: they live as long as this. Of
  // a quantized format rows repeat after some, which takes less time.
  Weight factor(int64_t rows, int64_t cols, WeightFormat format = WeightFormat::kBF16) {
    return backend_.place_factor(on_host(rows, cols, format));
  }
  Weight table(int64_t rows, int64_t cols, WeightFormat format = WeightFormat::kBF16) {
    return backend_.place(on_host(rows, cols, format));
  }
  // One sequence of n_tokens in every layer; each layer has its own memory.
  KvCache cache(PagePool& pool, const KvShape& shape, int64_t n_tokens);

 private:
  Weight on_host(int64_t rows, int64_t cols, WeightFormat format);
  uint64_t random();
  float number();  // within [-1, 1)

  Backend& backend_;
  uint64_t state_ = 1;
  std::vector<std::vector<char>> weights_;
};

}  // namespace ei::bench
