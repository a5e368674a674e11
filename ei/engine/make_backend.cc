#include "ei/engine/make_backend.h"

#include "ei/base/affinity.h"
#include "ei/base/fail.h"
#include "ei/cpu/backend.h"
#include "ei/cpu/targets.h"
#include "ei/cuda/backend.h"

namespace ei {

bool on_gpu(Device device) {
  return device == Device::kCuda || (device == Device::kAuto && cuda_available());
}

std::unique_ptr<Backend> make_backend(const EngineOptions& options) {
  if (!on_gpu(options.device)) {
    require(options.math != Math::kFP8,
            "products in fp8 are computed on GPUs; take --math bf16 or f32 on a CPU");
    require(options.kv_type != DType::kFP8,
            "KV caches of fp8 are computed on GPUs alone; take --kv-type q8_0 on a CPU");
    if (!options.cpu.empty()) cpu::use_target(options.cpu);
    return make_cpu_backend(options.threads, options.math, options.ranks, pinned_cpus(options.pin));
  }
  require(options.pin.empty(),
          "threads are pinned on the CPU alone; leave --pin out, or take --device cpu");
  require(options.kv_type != DType::kQ8,
          "KV caches of q8_0 are computed on the CPU alone; take --kv-type fp8, or --device cpu");
  require(options.math != Math::kF32,
          "GPUs compute in bf16; take --math bf16 or fp8, or --device cpu for --math f32");
  return make_cuda_backend(options.math, options.ranks);
}

}  // namespace ei
