#include "ei/cuda/backend.h"

#include <cstring>

#include "ei/base/fail.h"
#include "ei/cuda/cuda_backend.h"

namespace ei {
namespace cuda {

void check_cuda(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();
  fail("CUDA: {}: {}", what, cudaGetErrorString(code));
}

namespace {

int usable(int device, const Communicator& ranks) {
  int n = 0;
  const cudaError_t code = cudaGetDeviceCount(&n);
  if (code != cudaSuccess || n == 0) {
    cudaGetLastError();
    fail("CUDA: no GPU was found ({}); use --device cpu", cudaGetErrorString(code));
  }
  if (device < 0) return ranks.local_rank() % n;
  require(device < n, "CUDA: GPU {} of {} was asked for; they are numbered from 0", device, n);
  return device;
}

// Each rank has a GPU of its own, of whatever host.
void check_apart(Communicator& ranks, const cudaUUID_t& own) {
  const std::vector<cudaUUID_t> all = of_all(ranks, own);
  for (size_t i = 0; i < all.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      require(std::memcmp(&all[i], &all[j], sizeof own) != 0,
              "CUDA: ranks {} and {} of {} would share a GPU; start no more ranks on a host than "
              "it has GPUs",
              j, i, all.size());
}

}  // namespace

CudaBackend::CudaBackend(Math math, std::shared_ptr<Communicator> ranks, int device)
    : ranks_(ranks ? std::move(ranks) : std::make_shared<OneRank>()),
      device_(usable(device, *ranks_)),
      memory_(device_),
      stream_(device_),
      host_memory_(stream_),
      fp8_(math == Math::kFP8) {
  cudaDeviceProp prop{};
  EI_CUDA(cudaGetDeviceProperties(&prop, device_));
  require(prop.major == 9 && prop.minor == 0,
          "CUDA: {} has compute capability {}.{}, but the kernels are built for 9.0 (H100, H200)",
          prop.name, prop.major, prop.minor);
  n_sms_ = prop.multiProcessorCount;
  name_ = fmt::format("CUDA, {}, {} multiprocessors", prop.name, n_sms_);
  if (ranks_->size() > 1) {
    check_apart(*ranks_, prop.uuid);
    nccl_ = std::make_unique<Nccl>(ranks_, device_);
    name_ = fmt::format("{} x {}", ranks_->size(), name_);
  }
  workspace_ = memory_.allocate(kWorkspaceBytes);
  counters_ = static_cast<uint32_t*>(memory_.allocate(kCounters * int64_t{sizeof(uint32_t)}));
  EI_CUDA(cudaMemsetAsync(counters_, 0, kCounters * sizeof(uint32_t), stream_.get()));
  require(cublasLtCreate(&cublas_) == CUBLAS_STATUS_SUCCESS, "cuBLASLt does not start");
}

CudaBackend::~CudaBackend() {
  cudaSetDevice(device_);
  cudaDeviceSynchronize();
  if (cublas_ != nullptr) cublasLtDestroy(cublas_);
}

void CudaBackend::copy_in(void* device, const void* from, int64_t bytes) {
  const Nccl::Waiting waiting(nccl_.get());
  EI_CUDA(
      cudaMemcpyAsync(device, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_.get()));
}

void CudaBackend::copy_out(void* host, const void* device, int64_t bytes) {
  const Nccl::Waiting waiting(nccl_.get());
  EI_CUDA(
      cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_.get()));
  EI_CUDA(cudaStreamSynchronize(stream_.get()));
  if (nccl_) nccl_->check();
}

void CudaBackend::repeat(const std::function<void()>& ops) {
  if (!use_graphs_) return ops();
  stream_.hold();
  try {
    ops();
  } catch (...) {
    stream_.drop_held();
    throw;
  }
  stream_.release_held();
}

void* CudaBackend::reserve(Room& room, int64_t bytes) {
  if (bytes > room.bytes) {
    stream_.get();  // what is held back may use the old one
    if (room.data != nullptr) memory_.release(room.data, room.bytes);
    room = {};
    room.data = memory_.allocate(bytes);
    room.bytes = bytes;
  }
  return room.data;
}

}  // namespace cuda

int n_gpus() {
  int n = 0, major = 0;
  if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
    cudaGetLastError();
    return 0;
  }
  const bool fits =
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
      major == 9;
  return fits ? n : 0;
}

std::unique_ptr<Backend> make_cuda_backend(Math math, std::shared_ptr<Communicator> ranks,
                                           int device) {
  return std::make_unique<cuda::CudaBackend>(math, std::move(ranks), device);
}

StreamScope::StreamScope(Backend& cuda, void* stream) : cuda_(cuda) {
  static_cast<cuda::CudaBackend&>(cuda_).use_stream(static_cast<cudaStream_t>(stream));
}

StreamScope::~StreamScope() { static_cast<cuda::CudaBackend&>(cuda_).use_own_stream(); }

}  // namespace ei
