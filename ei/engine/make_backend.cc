#include "ei/engine/make_backend.h"

#include "ei/cpu/backend.h"
#include "ei/cuda/backend.h"

namespace ei {

std::unique_ptr<Backend> make_backend(Device device, int threads) {
  const bool on_gpu = device == Device::kCuda || (device == Device::kAuto && cuda_available());
  return on_gpu ? make_cuda_backend() : make_cpu_backend(threads);
}

}  // namespace ei
