#pragma once

#include <cstdint>
#include <string_view>

namespace ei {

// Bytes that could be allocated now: what the kernel says of the machine, or what this process's
// cgroup leaves if that is less.
int64_t available_memory();

// The same of the texts of /proc/meminfo, and of a cgroup's limit, usage and memory.stat. Cached
// files of the cgroup do not count as used, as they do not for the machine: the kernel drops them
// when memory is asked for. INT64_MAX where a text tells nothing, as "max" for a limit.
int64_t machine_available(std::string_view meminfo);
int64_t cgroup_available(std::string_view limit, std::string_view usage, std::string_view stat);

}  // namespace ei
