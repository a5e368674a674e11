// In place of the CPU backend where only the GPU is tested: tools/gpu_check.sh builds without the
// libraries that the CPU needs.
#include "ei/cpu/backend.h"
#include "ei/cpu/targets.h"

namespace ei {

std::unique_ptr<Backend> make_cpu_backend(int) { return nullptr; }

namespace cpu {

std::vector<std::string> targets() { return {}; }
void use_target(const std::string&) {}

}  // namespace cpu
}  // namespace ei
