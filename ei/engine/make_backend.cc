#include "ei/engine/make_backend.h"

#include "ei/cpu/backend.h"
#include "ei/cuda/backend.h"

namespace ei {

bool on_gpu(Device device) {
  return device == Device::kCuda || (device == Device::kAuto && cuda_available());
}

std::unique_ptr<Backend> make_backend(Device device, int threads) {
  return on_gpu(device) ? make_cuda_backend() : make_cpu_backend(threads);
}

}  // namespace ei
