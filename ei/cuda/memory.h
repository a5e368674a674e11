#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace ei::cuda {

// The backend's device memory. Everything is aligned to kAlignment, so that groups of 8 cache rows
// can be addressed in units of their size. What is released is kept for requests of the same size:
// ops run in one stream, so it is safe to hand it out again at once, and neither waits for the GPU.
// All of it lies within kReach of one address, as tensor maps count groups of rows in 31 bits:
// where others have address space of their own, NCCL say, the driver gives out what is left there
// as well.
class Memory {
 public:
  static constexpr int64_t kAlignment = 2048;
  static constexpr uint64_t kReach = uint64_t{1} << 39;

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
  bool is_within_reach(const void* data);
  void free_unused();
  void include(const void* data, int64_t size);  // in what is held

  int device_;
  std::unordered_map<int64_t, std::vector<void*>> unused_;  // by rounded size
  int64_t unused_bytes_ = 0;
  std::vector<void*> chunks_;  // small pieces are cut from them
  char* chunk_ = nullptr;      // rest of the newest
  int64_t chunk_bytes_ = 0;
  std::unordered_map<void*, int64_t> large_;
  std::vector<void*> strays_;  // beyond reach: kept, so that the driver goes on to other addresses
  uint64_t middle_ = 0;        // of what is within; 0: not known yet
  uint64_t lowest_ = UINT64_MAX;
  uint64_t highest_ = 0;
};

}  // namespace ei::cuda
