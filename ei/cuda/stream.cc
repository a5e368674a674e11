#include "ei/cuda/stream.h"

#include <array>
#include <cstring>
#include <utility>

#include "ei/cuda/error.h"

namespace ei::cuda {
namespace {

constexpr size_t kParamAlignment = 64;  // of a tensor map, the strictest there is
// A graph of a large model's step takes a few megabytes of the host.
constexpr size_t kMaxGraphs = 32;

bool same(dim3 a, dim3 b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

}  // namespace

Stream::Stream(int device) : device_(device) {
  use_device();
  for (cudaStream_t* stream : {&own_, &beside_stream_})
    EI_CUDA(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
  EI_CUDA(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming));
  for (Beside& beside : beside_)
    EI_CUDA(cudaEventCreateWithFlags(&beside.done, cudaEventDisableTiming));
  stream_ = own_;
}

void Stream::use_device() const { EI_CUDA(cudaSetDevice(device_)); }

Stream::~Stream() {
  cudaSetDevice(device_);
  cudaStreamSynchronize(own_);
  cudaStreamSynchronize(beside_stream_);
  graphs_.clear();
  cudaStreamDestroy(own_);
  cudaStreamDestroy(beside_stream_);
  cudaEventDestroy(ready_);
  for (const Beside& beside : beside_) cudaEventDestroy(beside.done);
}

void Stream::use(cudaStream_t stream) {
  EI_CUDA(cudaEventRecord(ready_, get()));
  EI_CUDA(cudaStreamWaitEvent(stream, ready_));
  stream_ = stream;
}

// What fails here has failed before, and is said by whatever is asked for next.
void Stream::use_own() noexcept {
  cudaEventRecord(ready_, stream_);
  cudaStreamWaitEvent(own_, ready_);
  stream_ = own_;
}

void Stream::call_beside(Memory memory, const LibraryCall& call) {
  if (holding_) get();
  ++n_calls_;
  use_device();
  EI_CUDA(cudaEventRecord(ready_, stream_));
  EI_CUDA(cudaStreamWaitEvent(beside_stream_, ready_));
  call(beside_stream_);
  Beside& beside = beside_[n_beside_++ % beside_.size()];
  await(beside);
  EI_CUDA(cudaEventRecord(beside.done, beside_stream_));
  beside.memory = memory;
  beside.ended = false;
}

Stream::Touches::Touches(Stream& stream, std::initializer_list<Memory> memory) : stream_(stream) {
  for (Beside& beside : stream_.beside_)
    for (const Memory& touched : memory)
      if (touched.data() < beside.memory.data() + beside.memory.size() &&
          beside.memory.data() < touched.data() + touched.size())
        stream_.await(beside);
  stream_.touches_ = true;
}

void Stream::await(Beside& beside) {
  if (!std::exchange(beside.ended, true)) EI_CUDA(cudaStreamWaitEvent(stream_, beside.done));
}

void Stream::await_all() {
  if (!touches_)
    for (Beside& beside : beside_) await(beside);
}

void Stream::start(const Launch& launch, void** params) {
  use_device();
  await_all();
  check_cuda(cudaLaunchKernel(launch.kernel, launch.grid, launch.block, params, launch.shared_bytes,
                              stream_),
             launch.name);
#ifdef EI_CUDA_SYNC
  check_cuda(cudaStreamSynchronize(stream_), launch.name);
#endif
}

void Stream::launch(const Launch& launch, std::span<void* const> params,
                    std::span<const size_t> sizes) {
  ++n_calls_;
  if (!holding_) return start(launch, const_cast<void**>(params.data()));
  hold_back(launch, params, sizes).call = nullptr;
}

void Stream::call(const char* name, std::span<const uint64_t> key, LibraryCall call) {
  ++n_calls_;
  if (!holding_) {
    use_device();
    await_all();
    return call(stream_);
  }
  const std::array<void*, 1> params = {const_cast<uint64_t*>(key.data())};
  const std::array<size_t, 1> sizes = {key.size_bytes()};
  hold_back({.name = name, .kernel = nullptr, .grid = {}, .block = {}, .shared_bytes = 0}, params,
            sizes)
      .call = std::move(call);
}

// What the graph has at this place is compared with and overwritten by what comes now.
Stream::Held& Stream::hold_back(const Launch& launch, std::span<void* const> params,
                                std::span<const size_t> sizes) {
  if (n_held_ == 0) {
    if (graphs_.size() == kMaxGraphs && !graphs_.contains(launch.grid.x)) graphs_.clear();
    graph_ = &graphs_[launch.grid.x];
    fits_ = graph_->exec != nullptr;
  }
  if (n_held_ == graph_->held.size()) graph_->held.emplace_back();
  Held& held = graph_->held[n_held_];
  fits_ = fits_ && n_held_ < graph_->nodes.size() && held.launch.kernel == launch.kernel;
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
  return held;
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
  await_all();
  holding_ = true;
  n_held_ = 0;
}

cudaStream_t Stream::get() {
  ++n_calls_;
  use_device();
  await_all();
  if (!std::exchange(holding_, false)) return stream_;
  for (size_t i = 0; i < n_held_; ++i) {
    Held& held = graph_->held[i];
    held.node();
    if (held.call) {
      held.call(stream_);
    } else {
      start(held.launch, held.pointers.data());
    }
  }
  if (n_held_ > 0) graph_->drop();  // the parameters it was compared with are overwritten
  return stream_;
}

void Stream::drop_held() noexcept {
  if (holding_ && n_held_ > 0) graph_->drop();
  holding_ = false;
}

void Stream::release_held() {
  if (!std::exchange(holding_, false) || n_held_ == 0) return;
  use_device();
  try {
    bool is_ready = fits_ && n_held_ == graph_->nodes.size();
    for (size_t i = 0; is_ready && i < n_held_; ++i)
      is_ready = !graph_->held[i].is_new || renew(graph_->held[i], graph_->nodes[i]);
    if (!is_ready) build();
    EI_CUDA(cudaGraphLaunch(graph_->exec, stream_));
  } catch (...) {
    graph_->drop();  // some of its parameters may be renewed, others not
    throw;
  }
#ifdef EI_CUDA_SYNC
  EI_CUDA(cudaStreamSynchronize(stream_));
#endif
}

// What the library launches, as a graph of its own.
cudaGraph_t Stream::capture(const LibraryCall& call) {
  cudaGraph_t graph = nullptr;
  EI_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed));
  try {
    call(stream_);
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  EI_CUDA(cudaStreamEndCapture(stream_, &graph));
  return graph;
}

// Whether the graph could be given what is held now.
bool Stream::renew(Held& held, cudaGraphNode_t node) {
  cudaError_t code = cudaSuccess;
  if (held.call) {
    const cudaGraph_t graph = capture(held.call);
    code = cudaGraphExecChildGraphNodeSetParams(graph_->exec, node, graph);
    cudaGraphDestroy(graph);
  } else {
    const cudaKernelNodeParams params = held.node();
    code = cudaGraphExecKernelNodeSetParams(graph_->exec, node, &params);
  }
  if (code != cudaSuccess) cudaGetLastError();
  return code == cudaSuccess;
}

void Stream::build() {
  Graph& to = *graph_;
  to.drop();
  EI_CUDA(cudaGraphCreate(&to.graph, 0));
  for (size_t i = 0; i < n_held_; ++i) {
    Held& held = to.held[i];
    cudaGraphNode_t node = nullptr;
    const cudaGraphNode_t* before = i == 0 ? nullptr : &to.nodes.back();
    const size_t n_before = i == 0 ? 0 : 1;
    if (held.call) {
      const cudaGraph_t graph = capture(held.call);
      const cudaError_t code = cudaGraphAddChildGraphNode(&node, to.graph, before, n_before, graph);
      cudaGraphDestroy(graph);  // the node has a copy
      check_cuda(code, held.launch.name);
    } else {
      const cudaKernelNodeParams params = held.node();
      check_cuda(cudaGraphAddKernelNode(&node, to.graph, before, n_before, &params),
                 held.launch.name);
    }
    to.nodes.push_back(node);
  }
  EI_CUDA(cudaGraphInstantiate(&to.exec, to.graph, 0));
}

void Stream::Graph::drop() noexcept {
  if (exec != nullptr) cudaGraphExecDestroy(exec);
  if (graph != nullptr) cudaGraphDestroy(graph);
  exec = nullptr;
  graph = nullptr;
  nodes.clear();
}

}  // namespace ei::cuda
