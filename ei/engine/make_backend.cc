#include "ei/engine/make_backend.h"

#include "ei/base/fail.h"
#include "ei/cpu/backend.h"
#include "ei/cuda/backend.h"

namespace ei {

bool on_gpu(Device device) {
  return device == Device::kCuda || (device == Device::kAuto && cuda_available());
}

std::unique_ptr<Backend> make_backend(Device device, int threads, DType kv_type) {
  require(!on_gpu(device) || kv_type != DType::kQ8,
          "KV caches of q8_0 are computed on the CPU alone; take --kv-type bf16, or --device cpu");
  return on_gpu(device) ? make_cuda_backend() : make_cpu_backend(threads);
}

}  // namespace ei
