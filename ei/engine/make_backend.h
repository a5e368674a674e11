#pragma once

#include <memory>

#include "ei/engine/engine.h"
#include "ei/ops/backend.h"

namespace ei {

// Whether that is a GPU: asked for, or there.
bool on_gpu(Device device);

// The hardware the engine runs on, by the options' device, threads, pin, kv_type, math and cpu.
// Throws
// Error when CUDA is asked for and there is no GPU that can be used, or what the hardware lacks.
std::unique_ptr<Backend> make_backend(const EngineOptions& options);

}  // namespace ei
