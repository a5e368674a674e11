#pragma once

#include <memory>

#include "ei/base/communicator.h"
#include "ei/base/math.h"
#include "ei/ops/backend.h"

namespace ei {

// GPUs of this machine that the CUDA backend can use (compute capability 9.0 of the first); 0 in a
// build without it.
int n_gpus();
inline bool cuda_available() { return n_gpus() > 0; }

// GPU number `device` of those this process sees; -1: the ranks of a host take one each, in their
// order. Activations in bf16. With Math::kFP8 place_factor() rounds weights to e4m3 with a scale a
// row, and more than 8 rows of x as well. `ranks` share the model, by NCCL; null: nobody does.
// Throws Error saying why when there is none that can be used, or which ranks want the same one.
std::unique_ptr<Backend> make_cuda_backend(Math math = Math::kBF16,
                                           std::shared_ptr<Communicator> ranks = nullptr,
                                           int device = -1);

// As long as it lives, a CUDA backend's ops run in a stream of somebody else's, a cudaStream_t of
// its GPU: behind all that the backend was given before, and before all that it is given later. The
// host waits for nothing. The GPU is the thread's current one.
class StreamScope {
 public:
  StreamScope(Backend& cuda, void* stream);
  ~StreamScope();
  StreamScope(const StreamScope&) = delete;
  StreamScope& operator=(const StreamScope&) = delete;

 private:
  Backend& cuda_;
};

}  // namespace ei
