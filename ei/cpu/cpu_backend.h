#pragma once

#include <array>
#include <memory>
#include <vector>

#include "ei/base/math.h"
#include "ei/cpu/quantized.h"
#include "ei/cpu/targets.h"
#include "ei/ops/buffer.h"

namespace ei::cpu {

struct AttentionItem;

// Memory for one op's intermediate results: grows to the most an op has asked for, so that repeated
// ops allocate nothing.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  // Room for n values of T, aligned to 64 bytes, contents undefined. The next call takes it away.
  template <class T>
  T* get(int64_t n) {
    return static_cast<T*>(bytes(n * int64_t{sizeof(T)}));
  }

 private:
  void* bytes(int64_t n);

  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Each run() is in the source named after its op.
class CpuBackend final : public Backend {
 public:
  CpuBackend(int n_threads, Math math, std::shared_ptr<Communicator> ranks, std::vector<int> cpus);

  std::string name() const override;
  int64_t act_bytes() const override { return sizeof(float); }
  int64_t prompt_rows() const override { return 2048; }
  int64_t available_bytes() const override;
  Communicator& ranks() override { return *ranks_; }
  void* allocate(int64_t bytes) override;
  void release(void* data, int64_t bytes) noexcept override;
  void discard(void* data, int64_t bytes) noexcept override;
  void copy_in(void* device, const void* host, int64_t bytes) override;
  void copy_out(void* host, const void* device, int64_t bytes) override;
  Weight place(const Weight& host) override;
  Weight place_factor(const Weight& host) override;
  void pinned(const std::function<void()>& ops) override;

  EI_OPS(EI_OVERRIDE_RUN)

 private:
  // x for the parts whose weights are of an integer format; parts that take the same share it.
  std::array<IntegerRows, 3> integer_rows(const MatMul& op);
  // Products in vectors, those of a few rows so many outputs at a time.
  void run_vectors(const MatMul& op, int64_t step);
  // Products by weights that are made floats first, whatever their format.
  void run_in_floats(const MatMul& op);

  // Products of more than a few rows in the tile unit, where there is one.
  bool fits_tiles(const MatMul::Part& part, int64_t n_rows) const;
  void run_tiles(const MatMul& op);
  // A weight in bf16 in the order of a TiledWeight.
  void pack(const Weight& weight, uint16_t* to) const;
  // Those of a few rows by weights that are tiled, so many outputs at a time.
  void run_tiled_dot(const MatMul& op, int64_t step);
  // Attention in it, for items of at most so many rows.
  void attend_tiles(const SparseAttention& op, const std::vector<AttentionItem>& items,
                    int64_t most_rows);

  int n_threads_;
  std::vector<int> cpus_;  // that threads are pinned to, or none
  Math math_;
  Tiles tiles_;
  std::shared_ptr<Communicator> ranks_;
  Scratch scratch_;
  Scratch integers_;            // of integer_rows()
  std::vector<Buffer> placed_;  // copies of weights that are not read where they are
  // Of the last piece of memory for tiled weights what is left, and of all memory what they may
  // take beside those that are; less than 0: not known yet.
  char* piece_ = nullptr;
  int64_t piece_left_ = 0, most_tiled_bytes_ = -1;
};

}  // namespace ei::cpu
