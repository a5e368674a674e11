#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace ei::cuda {

// The backend's device memory. Everything is aligned to kAlignment, so that groups of 8 cache rows
// can be addressed in units of their size. What is released is kept for requests of the same size:
// ops run in one stream, so it is safe to hand it out again at once, and neither waits for the GPU.
class Memory {
 public:
  static constexpr int64_t kAlignment = 2048;

  explicit Memory(int device) : device_(device) {}
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // Throws Error when there is not enough, naming both numbers.
  void* allocate(int64_t bytes);
  void release(void* data, int64_t bytes) noexcept;
  int64_t available_bytes() const;

  // Lowest address of all memory that is held, and its end.
  uint64_t lowest() const { return lowest_; }
  uint64_t highest() const { return highest_; }

 private:
  void* allocate_new(int64_t size);
  void free_unused();
  void include(const void* data, int64_t size);  // in what is held

  int device_;
  std::unordered_map<int64_t, std::vector<void*>> unused_;  // by rounded size
  int64_t unused_bytes_ = 0;
  std::vector<void*> chunks_;  // small pieces are cut from them
  char* chunk_ = nullptr;      // rest of the newest
  int64_t chunk_bytes_ = 0;
  std::unordered_map<void*, int64_t> large_;
  uint64_t lowest_ = UINT64_MAX;
  uint64_t highest_ = 0;
};

}  // namespace ei::cuda
