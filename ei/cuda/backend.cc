#include "ei/cuda/backend.h"

#include "ei/base/fail.h"
#include "ei/cuda/cuda_backend.h"

namespace ei {
namespace cuda {

void check_cuda(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();
  fail("CUDA: {}: {}", what, cudaGetErrorString(code));
}

CudaBackend::CudaBackend(Math math) : fp8_(math == Math::kFP8) {
  cudaDeviceProp prop{};
  EI_CUDA(cudaGetDeviceProperties(&prop, 0));
  require(prop.major == 9 && prop.minor == 0,
          "CUDA: {} has compute capability {}.{}, but the kernels are built for 9.0 (H100, H200)",
          prop.name, prop.major, prop.minor);
  n_sms_ = prop.multiProcessorCount;
  name_ = fmt::format("CUDA, {}, {} multiprocessors", prop.name, n_sms_);
  workspace_ = memory_.allocate(kWorkspaceBytes);
  counters_ = static_cast<uint32_t*>(memory_.allocate(kCounters * int64_t{sizeof(uint32_t)}));
  EI_CUDA(cudaMemsetAsync(counters_, 0, kCounters * sizeof(uint32_t), stream_.get()));
  require(cublasLtCreate(&cublas_) == CUBLAS_STATUS_SUCCESS, "cuBLASLt does not start");
}

CudaBackend::~CudaBackend() {
  cudaDeviceSynchronize();
  if (cublas_ != nullptr) cublasLtDestroy(cublas_);
}

void CudaBackend::copy_in(void* device, const void* from, int64_t bytes) {
  EI_CUDA(
      cudaMemcpyAsync(device, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_.get()));
}

void CudaBackend::copy_out(void* host, const void* device, int64_t bytes) {
  EI_CUDA(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                          stream_.get()));
  EI_CUDA(cudaStreamSynchronize(stream_.get()));
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

bool cuda_available() {
  int n = 0, major = 0;
  if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
    cudaGetLastError();
    return false;
  }
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
         major == 9;
}

std::unique_ptr<Backend> make_cuda_backend(Math math) {
  int n = 0;
  const cudaError_t code = cudaGetDeviceCount(&n);
  if (code != cudaSuccess || n == 0) {
    cudaGetLastError();
    fail("CUDA: no GPU was found ({}); use --device cpu", cudaGetErrorString(code));
  }
  return std::make_unique<cuda::CudaBackend>(math);
}

}  // namespace ei
