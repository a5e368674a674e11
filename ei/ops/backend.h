#pragma once

#include <functional>
#include <string>

#include "ei/ops/op_list.h"
#include "ei/ops/page_layout.h"

namespace ei {

class Communicator;
class HostMemory;

// The whole contract between the engine and the hardware: memory, and one overload of run() per op
// of EI_OPS, all pure, so that a backend that misses one does not link. Ops run in the order
// they are given; only copy_out waits for them. run() throws Error when check(op) does. One thread
// at a time.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;         // e.g. "CPU, AVX2, 2 threads"
  virtual int64_t act_bytes() const = 0;        // of one activation element
  virtual int64_t prompt_rows() const = 0;      // tokens to read at a time that fill the device
  virtual int64_t available_bytes() const = 0;  // memory that could be allocated now
  // What attention of a prompt of n tokens needs beside its operands, of a layer of such pages.
  virtual int64_t attention_bytes(const PageLayout&, int64_t /*n_kv_heads*/, int64_t /*n*/) const {
    return 0;
  }
  virtual Communicator& ranks() = 0;  // that share the model, this one among them
  // Null: the device's memory is the host's, and there is no other.
  virtual HostMemory* host_memory() { return nullptr; }

  // Device memory, aligned to 256 bytes, contents undefined. allocate() throws Error when there is
  // not enough, naming both numbers.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* data, int64_t bytes) noexcept = 0;
  // Gives the physical memory of a range back while its addresses stay valid; contents are lost.
  virtual void discard(void* data, int64_t bytes) noexcept = 0;
  virtual void copy_in(void* device, const void* host, int64_t bytes) = 0;   // or of the device
  virtual void copy_out(void* host, const void* device, int64_t bytes) = 0;  // or of the host

  // A weight of the checkpoint where the ops can read it: the same memory if the device reads the
  // host's, else a copy that lives as long as the backend.
  virtual Weight place(const Weight& host) = 0;
  // The same of a layer's matrix, in the numbers that its products are to be computed in.
  virtual Weight place_factor(const Weight& host) { return place(host); }

  // Runs ops that come again and again in the same order, as those of a decode step do: a device
  // may hold them back and start them as one.
  virtual void repeat(const std::function<void()>& ops) { ops(); }

  // Runs ops with the threads that compute them where they were asked to be: a processor's on CPUs
  // of their own, the calling thread among them until this returns.
  virtual void pinned(const std::function<void()>& ops) { ops(); }

#define EI_RUN(Op) virtual void run(const Op& op) = 0;
  EI_OPS(EI_RUN)
#undef EI_RUN
};

}  // namespace ei
