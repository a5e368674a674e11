#include "ei/cpu/backend.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "ei/base/affinity.h"
#include "ei/base/available_memory.h"
#include "ei/base/communicator.h"
#include "ei/base/fail.h"
#include "ei/cpu/cpu_backend.h"
#include "ei/cpu/targets.h"
#include "ei/cpu/team.h"

namespace ei {
namespace cpu {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

Scratch::~Scratch() { std::free(data_); }

void* Scratch::bytes(int64_t n) {
  if (n > bytes_) {
    std::free(data_);
    bytes_ = 0;
    const int64_t size = round_up(n, n < kHugePage ? 4096 : kHugePage);
    data_ = std::aligned_alloc(n < kHugePage ? 4096 : kHugePage, static_cast<size_t>(size));
    require(data_ != nullptr, "no memory for {} bytes of scratch", size);
    if (size >= kHugePage) madvise(data_, static_cast<size_t>(size), MADV_HUGEPAGE);
    bytes_ = size;
  }
  return data_;
}

CpuBackend::CpuBackend(int n_threads, Math math, std::shared_ptr<Communicator> ranks,
                       std::vector<int> cpus)
    : n_threads_(n_threads),
      cpus_(std::move(cpus)),
      math_(math),
      tiles_(tiles()),
      ranks_(ranks ? std::move(ranks) : std::make_shared<OneRank>()) {
  require(n_threads >= 0, "threads is {}, expected 0 (all cores) or more", n_threads);
  if (n_threads_ == 0) n_threads_ = default_threads(cpus_);
  require(
      cpus_.empty() || std::ssize(cpus_) >= n_threads_,
      "{} threads are to be pinned to {} CPUs ({}); give each a CPU of its own, or fewer threads",
      n_threads_, cpus_.size(), fmt::join(cpus_, ","));
}

std::string CpuBackend::name() const {
  return fmt::format("CPU, {}, {} thread{}", target_description(tiles_), n_threads_,
                     n_threads_ == 1 ? "" : "s");
}

int64_t CpuBackend::available_bytes() const { return available_memory(); }

void* CpuBackend::allocate(int64_t bytes) {
  const bool large = bytes >= kHugePage;
  // Memory is overcommitted: without a look first, the process would be killed on first use.
  if (large) {
    const int64_t available = available_bytes();
    require(bytes <= available, "no memory for {} bytes: {} are available", bytes, available);
  }
  const int64_t alignment = large ? kHugePage : kAlignment;
  const auto size = static_cast<size_t>(round_up(std::max<int64_t>(bytes, 1), alignment));
  void* data = std::aligned_alloc(static_cast<size_t>(alignment), size);
  if (data == nullptr)  // only then: asking takes longer than allocating
    fail("no memory for {} bytes: {} are available", bytes, available_bytes());
  if (large) madvise(data, size, MADV_HUGEPAGE);
  return data;
}

void CpuBackend::release(void* data, int64_t) noexcept { std::free(data); }

void CpuBackend::discard(void* data, int64_t bytes) noexcept {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = (address + static_cast<uintptr_t>(bytes)) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void CpuBackend::copy_in(void* device, const void* host, int64_t bytes) {
  if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
}

void CpuBackend::copy_out(void* host, const void* device, int64_t bytes) {
  if (bytes > 0) std::memcpy(host, device, static_cast<size_t>(bytes));
}

Weight CpuBackend::place(const Weight& host) {
  const auto address = reinterpret_cast<uintptr_t>(host.data);
  if (is_quantized(host.format) ||
      address % static_cast<uintptr_t>(dtype_bytes(dtype_of(host.format))) == 0)
    return host;
  placed_.emplace_back(*this, host.bytes());
  Weight copy = host;
  copy.data = placed_.back().data();
  std::memcpy(placed_.back().data(), host.data, static_cast<size_t>(host.bytes()));
  return copy;
}

void CpuBackend::pinned(const std::function<void()>& ops) {
  const Pinned here(cpus_);
  ops();
}

}  // namespace cpu

std::unique_ptr<Backend> make_cpu_backend(int n_threads, Math math,
                                          std::shared_ptr<Communicator> ranks,
                                          std::vector<int> cpus) {
  return std::make_unique<cpu::CpuBackend>(n_threads, math, std::move(ranks), std::move(cpus));
}

}  // namespace ei
