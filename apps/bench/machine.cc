#include "apps/bench/machine.h"

#include <unistd.h>

#include <fstream>
#include <thread>

namespace ei::bench {
namespace {

// What follows "name" and a colon in a file of such lines.
std::string field(const char* path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(name)) continue;
    const size_t at = line.find_first_not_of(" \t:", name.size());
    return at == std::string::npos ? "" : line.substr(at);
  }
  return "";
}

}  // namespace

Machine this_machine() {
  Machine machine;
  machine.cpu = field("/proc/cpuinfo", "model name");
  if (machine.cpu.empty()) machine.cpu = "unknown CPU";
  machine.cores = std::thread::hardware_concurrency();
  machine.memory_bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  return machine;
}

void reset_peak_memory() { std::ofstream("/proc/self/clear_refs") << 5; }

int64_t peak_memory() {
  const std::string kib = field("/proc/self/status", "VmHWM");
  return kib.empty() ? 0 : std::stoll(kib) * 1024;
}

}  // namespace ei::bench
