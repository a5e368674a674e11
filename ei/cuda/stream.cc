#include "ei/cuda/stream.h"

#include <cstring>

#include "ei/cuda/error.h"

namespace ei::cuda {
namespace {

constexpr size_t kParamAlignment = 64;  // of a tensor map, the strictest there is

bool same(dim3 a, dim3 b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

}  // namespace

Stream::Stream() { EI_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }

Stream::~Stream() {
  cudaStreamSynchronize(stream_);
  drop_graph();
  cudaStreamDestroy(stream_);
}

void Stream::start(const Launch& launch, void** params) {
  check_cuda(cudaLaunchKernel(launch.kernel, launch.grid, launch.block, params, launch.shared_bytes,
                              stream_),
             launch.name);
#ifdef EI_CUDA_SYNC
  check_cuda(cudaStreamSynchronize(stream_), launch.name);
#endif
}

void Stream::launch(const Launch& launch, std::span<void* const> params,
                    std::span<const size_t> sizes) {
  if (!holding_) return start(launch, const_cast<void**>(params.data()));

  // What the graph has at this place is compared with and overwritten by what comes now.
  if (n_held_ == held_.size()) held_.emplace_back();
  Held& held = held_[n_held_];
  fits_ = fits_ && n_held_ < nodes_.size() && held.launch.kernel == launch.kernel;
  held.is_new = !fits_ || !same(held.launch.grid, launch.grid) ||
                !same(held.launch.block, launch.block) ||
                held.launch.shared_bytes != launch.shared_bytes;
  held.launch = launch;
  ++n_held_;

  size_t end = 0;
  held.offsets.resize(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    held.offsets[i] = end;
    end += (sizes[i] + kParamAlignment - 1) / kParamAlignment * kParamAlignment;
  }
  // The vector's own memory is aligned to 16 only: room to move the start.
  held.params.resize(end + kParamAlignment);
  for (size_t i = 0; i < sizes.size(); ++i) {
    std::byte* to = held.first() + held.offsets[i];
    if (std::memcmp(to, params[i], sizes[i]) == 0) continue;
    std::memcpy(to, params[i], sizes[i]);
    held.is_new = true;
  }
}

std::byte* Stream::Held::first() {
  const auto address = reinterpret_cast<uintptr_t>(params.data());
  return params.data() + (kParamAlignment - address % kParamAlignment) % kParamAlignment;
}

cudaKernelNodeParams Stream::Held::node() {
  pointers.resize(offsets.size());
  for (size_t i = 0; i < offsets.size(); ++i) pointers[i] = first() + offsets[i];
  cudaKernelNodeParams node{};
  node.func = const_cast<void*>(launch.kernel);
  node.gridDim = launch.grid;
  node.blockDim = launch.block;
  node.sharedMemBytes = static_cast<unsigned>(launch.shared_bytes);
  node.kernelParams = pointers.data();
  return node;
}

void Stream::hold() {
  holding_ = true;
  fits_ = exec_ != nullptr;
  n_held_ = 0;
}

cudaStream_t Stream::get() {
  if (holding_) {
    holding_ = false;
    for (size_t i = 0; i < n_held_; ++i) {
      held_[i].node();
      start(held_[i].launch, held_[i].pointers.data());
    }
    drop_graph();  // the parameters it was compared with are overwritten
  }
  return stream_;
}

void Stream::drop_held() noexcept {
  if (holding_) drop_graph();
  holding_ = false;
}

void Stream::release_held() {
  if (!holding_) return;
  holding_ = false;
  if (n_held_ == 0) return;
  if (fits_ && n_held_ == nodes_.size()) {
    for (size_t i = 0; i < n_held_; ++i) {
      if (!held_[i].is_new) continue;
      const cudaKernelNodeParams params = held_[i].node();
      if (cudaGraphExecKernelNodeSetParams(exec_, nodes_[i], &params) == cudaSuccess) continue;
      cudaGetLastError();
      build_graph();
      break;
    }
  } else {
    build_graph();
  }
  EI_CUDA(cudaGraphLaunch(exec_, stream_));
#ifdef EI_CUDA_SYNC
  EI_CUDA(cudaStreamSynchronize(stream_));
#endif
}

void Stream::build_graph() {
  drop_graph();
  EI_CUDA(cudaGraphCreate(&graph_, 0));
  for (size_t i = 0; i < n_held_; ++i) {
    const cudaKernelNodeParams params = held_[i].node();
    cudaGraphNode_t node = nullptr;
    check_cuda(cudaGraphAddKernelNode(&node, graph_, i == 0 ? nullptr : &nodes_.back(),
                                      i == 0 ? 0 : 1, &params),
               held_[i].launch.name);
    nodes_.push_back(node);
  }
  EI_CUDA(cudaGraphInstantiate(&exec_, graph_, 0));
}

void Stream::drop_graph() noexcept {
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
  if (graph_ != nullptr) cudaGraphDestroy(graph_);
  exec_ = nullptr;
  graph_ = nullptr;
  nodes_.clear();
}

}  // namespace ei::cuda
