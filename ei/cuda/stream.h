#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <span>
#include <vector>

namespace ei::cuda {

// One launch of a kernel: `name` says what to blame.
struct Launch {
  const char* name;
  const void* kernel;  // null: a library's
  dim3 grid, block;
  size_t shared_bytes;
};

// The stream everything runs on, its own or for a while a caller's. Between hold() and
// release_held() launches are held back and then started as one graph, which is kept: when the same
// kernels come again, only the parameters that differ are renewed. There is a graph for each grid
// that the first kernel came with, and so for each size of a batch: it may change from one step to
// the next.
class Stream {
 public:
  explicit Stream(int device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // The kernel's parameters: where each is and how large.
  void launch(const Launch& launch, std::span<void* const> params, std::span<const size_t> sizes);
  // What a library launches on a stream it is given; the same whenever `key` is. Held back, it is
  // captured, which the library must have been ready for: it has done the same before.
  using LibraryCall = std::function<void(cudaStream_t)>;
  void call(const char* name, std::span<const uint64_t> key, LibraryCall call);
  // The same of what may run beside all that comes next and does not touch `memory`: not held back.
  using Memory = std::span<const std::byte>;
  void call_beside(Memory memory, const LibraryCall& call);
  // While it lives, what is launched touches nothing but this, and so waits for nothing beside but
  // what touches it too. All else waits for everything.
  class Touches {
   public:
    Touches(Stream& stream, std::initializer_list<Memory> memory);
    ~Touches() { stream_.touches_ = false; }
    Touches(const Touches&) = delete;

   private:
    Stream& stream_;
  };
  // For the calling thread: makes the GPU current, as whatever is done with it wants it.
  void use_device() const;
  // For what is neither: whatever is held is launched first, and no more is held.
  cudaStream_t get();
  // Goes on in a stream of the caller's, or in its own again, behind all that it was given before.
  void use(cudaStream_t stream);
  void use_own() noexcept;
  // How often the stream was given something to do.
  uint64_t n_calls() const { return n_calls_; }

  void hold();
  void release_held();
  // Forgets what is held.
  void drop_held() noexcept;

 private:
  struct Held {
    Launch launch{};
    std::vector<std::byte> params;  // one behind the other, each aligned to kParamAlignment
    std::vector<size_t> offsets;
    LibraryCall call;
    bool is_new = true;  // the graph has other parameters

    std::vector<void*> pointers;  // to each, once node() has been asked for

    std::byte* first();
    cudaKernelNodeParams node();
  };
  // Kernels that were held back together, and the graph of those that were started last.
  struct Graph {
    ~Graph() { drop(); }
    void drop() noexcept;

    std::vector<Held> held;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    std::vector<cudaGraphNode_t> nodes;
  };
  // Something that runs beside: on its own stream, until the event.
  struct Beside {
    Memory memory;
    cudaEvent_t done = nullptr;
    bool ended = true;
  };
  void await(Beside& beside);
  void await_all();
  Held& hold_back(const Launch& launch, std::span<void* const> params,
                  std::span<const size_t> sizes);
  void start(const Launch& launch, void** params);
  cudaGraph_t capture(const LibraryCall& call);
  bool renew(Held& held, cudaGraphNode_t node);
  void build();

  int device_;
  cudaStream_t own_ = nullptr;
  cudaStream_t stream_ = nullptr;  // in use
  cudaStream_t beside_stream_ = nullptr;
  cudaEvent_t ready_ = nullptr;  // what comes before something beside, or in another stream
  std::array<Beside, 4> beside_;
  size_t n_beside_ = 0;   // so far
  bool touches_ = false;  // there is a Touches
  uint64_t n_calls_ = 0;
  bool holding_ = false;
  size_t n_held_ = 0;                 // the others of graph_->held keep their memory
  bool fits_ = false;                 // held so far are the graph's first kernels
  Graph* graph_ = nullptr;            // once something is held
  std::map<unsigned, Graph> graphs_;  // by the first kernel's blocks
};

}  // namespace ei::cuda
