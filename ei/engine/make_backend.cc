#include "ei/engine/make_backend.h"

#include "ei/cpu/backend.h"

namespace ei {

std::unique_ptr<Backend> make_backend(int threads) { return make_cpu_backend(threads); }

}  // namespace ei
