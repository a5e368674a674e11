#pragma once

#include <pthread.h>

#include <string>
#include <string_view>
#include <vector>

namespace ei {

// CPUs that the calling thread may run on, ascending: its affinity mask, which the cpuset of a
// cgroup narrows.
std::vector<int> allowed_cpus();

// Threads that are worth having: one for each of these CPUs, or where there are none of those
// allowed, but no more than the cgroup's quota pays for.
int default_threads(const std::vector<int>& cpus = {});

// The CPUs that a cgroup's quota pays for, rounded up, of the text of its cpu.max: "250000 100000",
// so many microseconds of every so many, are 3. INT_MAX where it tells nothing, as "max 100000".
int cgroup_cpus(std::string_view cpu_max);

// The CPUs that threads 0, 1, ... are to be pinned to. "": none; "auto": all that are allowed, one
// of every core before the second hardware threads; else a list as taskset takes it,
// "0-3,8,16-30:2", in its order. Throws Error when the list cannot be read or names a CPU twice or
// one that is not allowed.
std::vector<int> pinned_cpus(const std::string& pin);

// Where a thread may run from now on. A system that does not let it is not told off: the thread
// stays where it was.
void set_cpus(pthread_t thread, const std::vector<int>& cpus);

}  // namespace ei
