#include "ei/base/available_memory.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <string>

namespace ei {
namespace {

std::string read(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The number that a text starts with, blanks before it left out; -1 if there is none or it does not
// fit.
int64_t number(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} ? value : -1;
}

// The number behind a name at the start of a line; -1 if there is none.
int64_t field(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    if (line.starts_with(name)) return number(line.substr(name.size()));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
  }
  return -1;
}

}  // namespace

int64_t machine_available(std::string_view meminfo) {
  const int64_t kib = field(meminfo, "MemAvailable:");
  return kib < 0 || kib > INT64_MAX / 1024 ? INT64_MAX : kib * 1024;
}

int64_t cgroup_available(std::string_view limit, std::string_view usage, std::string_view stat) {
  const int64_t most = number(limit), used = number(usage);
  if (most < 0 || used < 0) return INT64_MAX;
  // Version 1 counts the groups below in total_*, as its usage does; version 2 always does.
  int64_t cached = 0;
  for (const std::string name : {"inactive_file ", "active_file "}) {
    const int64_t total = field(stat, "total_" + name);
    const int64_t bytes = total >= 0 ? total : field(stat, name);
    cached += std::clamp<int64_t>(bytes, 0, used - cached);
  }
  return std::max<int64_t>(0, most - (used - cached));
}

int64_t available_memory() {
  const auto cgroup = [](const char* limit, const char* usage, const char* stat) {
    return cgroup_available(read(limit), read(usage), read(stat));
  };
  return std::min(
      {machine_available(read("/proc/meminfo")),
       cgroup("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
              "/sys/fs/cgroup/memory.stat"),
       cgroup("/sys/fs/cgroup/memory/memory.limit_in_bytes",
              "/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory/memory.stat")});
}

}  // namespace ei
