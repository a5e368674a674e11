#pragma once

#include <cstdint>
#include <span>

namespace ei {

// Memory of the host beside a device that has its own, from where it copies at its link's rate.
// Such copies run beside the ops, in the order that they were asked for. One thread at a time, that
// of the backend.
class HostMemory {
 public:
  virtual ~HostMemory() = default;

  virtual int64_t available_bytes() const = 0;  // that could be allocated now
  // Throws Error when there is not enough, naming both numbers.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* data, int64_t bytes) noexcept = 0;

  // Copies pieces of `bytes` each from one memory to the other, behind all ops given before: to[i]
  // gets what is at from[i] then. Neither is to be touched by ops before await(), nor by the host
  // before copied(). Throws Error; nothing is copied any more then.
  virtual void copy(std::span<void* const> to, std::span<const void* const> from,
                    int64_t bytes) = 0;
  virtual bool copied() = 0;  // whether all such copies have ended
  virtual void await() = 0;   // has the ops that come next wait for them; the host does not
};

}  // namespace ei
