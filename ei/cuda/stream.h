#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ei::cuda {

// One launch of a kernel: `name` says what to blame.
struct Launch {
  const char* name;
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
};

// The stream everything runs on. Between hold() and release_held() launches are held back and then
// started as one graph, which is kept: when the same kernels come again, only the parameters that
// differ are renewed.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // The kernel's parameters: where each is and how large.
  void launch(const Launch& launch, std::span<void* const> params, std::span<const size_t> sizes);
  // For what is no kernel launch: whatever is held is launched first, and no more is held.
  cudaStream_t get();

  void hold();
  void release_held();
  // Forgets what is held.
  void drop_held() noexcept;

 private:
  struct Held {
    Launch launch{};
    std::vector<std::byte> params;  // one behind the other, each aligned to kParamAlignment
    std::vector<size_t> offsets;
    bool is_new = true;  // the graph has other parameters

    std::vector<void*> pointers;  // to each, once node() has been asked for

    std::byte* first();
    cudaKernelNodeParams node();
  };
  void start(const Launch& launch, void** params);
  void build_graph();
  void drop_graph() noexcept;

  cudaStream_t stream_ = nullptr;
  bool holding_ = false;
  size_t n_held_ = 0;
  std::vector<Held> held_;  // the first n_held_; the others keep their memory
  bool fits_ = false;       // held so far are the graph's first kernels
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
  std::vector<cudaGraphNode_t> nodes_;
};

}  // namespace ei::cuda
