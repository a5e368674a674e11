#include "ei/base/affinity.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <climits>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <optional>

#include "ei/base/fail.h"

namespace ei {
namespace {

// A kernel refuses to fill a set that is smaller than its own: 8,192 CPUs, the most that Linux has.
using CpuSet = std::array<cpu_set_t, 8>;
constexpr int kMostCpus = 8192;

std::string read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Takes a number off the front of a text; nothing if there is none.
std::optional<int64_t> take_number(std::string_view& text) {
  int64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc{} || n < 0) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return n;
}

bool take(std::string_view& text, char c) {
  if (!text.starts_with(c)) return false;
  text.remove_prefix(1);
  return true;
}

// "0-3,8,16-30:2" in its order; nothing if it cannot be read.
std::optional<std::vector<int>> parse_list(std::string_view text) {
  std::vector<int> cpus;
  do {
    const std::optional<int64_t> first = take_number(text);
    const std::optional<int64_t> last = take(text, '-') ? take_number(text) : first;
    const std::optional<int64_t> step = take(text, ':') ? take_number(text) : 1;
    if (!first || !last || !step || *step < 1 || *last < *first || *last >= kMostCpus)
      return std::nullopt;
    for (int64_t cpu = *first; cpu <= *last; cpu += *step) cpus.push_back(static_cast<int>(cpu));
  } while (take(text, ','));
  if (!text.empty()) return std::nullopt;
  return cpus;
}

// Which of its core's hardware threads that are allowed a CPU is.
int64_t place_in_core(int cpu, const std::vector<int>& allowed) {
  std::string text =
      read(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
  while (text.ends_with('\n')) text.pop_back();
  const std::vector<int> core = parse_list(text).value_or(std::vector<int>{});
  return std::ranges::count_if(core, [&](int sibling) {
    return sibling < cpu && std::ranges::binary_search(allowed, sibling);
  });
}

}  // namespace

std::vector<int> allowed_cpus() {
  CpuSet set = {};
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), set.data()) != 0) return {0};
  for (int cpu = 0; cpu < kMostCpus; ++cpu)
    if (CPU_ISSET_S(cpu, sizeof(set), set.data())) cpus.push_back(cpu);
  return cpus;
}

int cgroup_cpus(std::string_view cpu_max) {
  const std::optional<int64_t> quota = take_number(cpu_max);
  const bool both = quota && (take(cpu_max, ' ') || take(cpu_max, '\n'));
  const std::optional<int64_t> period = both ? take_number(cpu_max) : std::nullopt;
  if (!period || *period == 0) return INT_MAX;
  const int64_t cpus = *quota / *period + (*quota % *period != 0 ? 1 : 0);
  return static_cast<int>(std::clamp<int64_t>(cpus, 1, INT_MAX));
}

int default_threads(const std::vector<int>& cpus) {
  // Version 1 has the same two numbers in files of their own.
  return std::min({static_cast<int>(cpus.empty() ? allowed_cpus().size() : cpus.size()),
                   cgroup_cpus(read("/sys/fs/cgroup/cpu.max")),
                   cgroup_cpus(read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") +
                               read("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))});
}

std::vector<int> pinned_cpus(const std::string& pin) {
  if (pin.empty()) return {};
  const std::vector<int> allowed = allowed_cpus();
  if (pin == "auto") {
    std::vector<int> cpus = allowed;
    std::ranges::stable_sort(cpus, {}, [&](int cpu) { return place_in_core(cpu, allowed); });
    return cpus;
  }
  const std::optional<std::vector<int>> cpus = parse_list(pin);
  require(cpus.has_value(), "pin is {}, expected auto or a list of CPUs such as 0-3,8,16-30:2",
          pin);
  for (size_t i = 0; i < cpus->size(); ++i) {
    const int cpu = (*cpus)[i];
    require(std::ranges::binary_search(allowed, cpu),
            "pin is {}, but this process may not run on CPU {}, only on {}", pin, cpu,
            fmt::join(allowed, ","));
    require(std::find(cpus->begin(), cpus->begin() + static_cast<int64_t>(i), cpu) ==
                cpus->begin() + static_cast<int64_t>(i),
            "pin is {}, which has CPU {} twice; give each thread a CPU of its own", pin, cpu);
  }
  return *cpus;
}

void set_cpus(pthread_t thread, const std::vector<int>& cpus) {
  CpuSet set = {};
  for (const int cpu : cpus) CPU_SET_S(cpu, sizeof(set), set.data());
  pthread_setaffinity_np(thread, sizeof(set), set.data());
}

}  // namespace ei
