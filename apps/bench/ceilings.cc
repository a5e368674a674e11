#include "apps/bench/ceilings.h"

#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "ei/cpu/amx.h"
#include "ei/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "apps/bench/ceilings.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace ei::bench::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Enough independent sums to hide the latency of two multiply-adds a cycle, few enough to stay in
// AVX2's 16 registers with the two factors.
constexpr int64_t kSums = 12;

// n rounds of kSums multiply-adds on registers. Returns their sum, so that nothing is optimised
// away.
float fma_rounds(int64_t n) {
  const hn::ScalableTag<float> d;
  const auto x = hn::Set(d, 0.999f), y = hn::Set(d, 0.001f);
  // All different: equal sums would be computed once.
  auto s0 = hn::Set(d, 0.1f), s1 = hn::Set(d, 0.2f), s2 = hn::Set(d, 0.3f), s3 = hn::Set(d, 0.4f);
  auto s4 = hn::Set(d, 0.5f), s5 = hn::Set(d, 0.6f), s6 = hn::Set(d, 0.7f), s7 = hn::Set(d, 0.8f);
  auto s8 = hn::Set(d, 0.9f), s9 = hn::Set(d, 1.1f), s10 = hn::Set(d, 1.2f), s11 = hn::Set(d, 1.3f);
  for (int64_t i = 0; i < n; ++i) {
    s0 = hn::MulAdd(s0, x, y);
    s1 = hn::MulAdd(s1, x, y);
    s2 = hn::MulAdd(s2, x, y);
    s3 = hn::MulAdd(s3, x, y);
    s4 = hn::MulAdd(s4, x, y);
    s5 = hn::MulAdd(s5, x, y);
    s6 = hn::MulAdd(s6, x, y);
    s7 = hn::MulAdd(s7, x, y);
    s8 = hn::MulAdd(s8, x, y);
    s9 = hn::MulAdd(s9, x, y);
    s10 = hn::MulAdd(s10, x, y);
    s11 = hn::MulAdd(s11, x, y);
  }
  const auto a = hn::Add(hn::Add(s0, s1), hn::Add(s2, s3));
  const auto b = hn::Add(hn::Add(s4, s5), hn::Add(s6, s7));
  const auto c = hn::Add(hn::Add(s8, s9), hn::Add(s10, s11));
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(a, hn::Add(b, c))));
}

int64_t fma_flops_a_round() {
  return 2 * kSums * static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>()));
}

// Reads n floats, a multiple of eight vectors, aligned.
float read(const float* HWY_RESTRICT data, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
  for (int64_t i = 0; i < n; i += 8 * step) {
    s0 = hn::Add(s0, hn::Load(d, data + i));
    s1 = hn::Add(s1, hn::Load(d, data + i + step));
    s2 = hn::Add(s2, hn::Load(d, data + i + 2 * step));
    s3 = hn::Add(s3, hn::Load(d, data + i + 3 * step));
    s4 = hn::Add(s4, hn::Load(d, data + i + 4 * step));
    s5 = hn::Add(s5, hn::Load(d, data + i + 5 * step));
    s6 = hn::Add(s6, hn::Load(d, data + i + 6 * step));
    s7 = hn::Add(s7, hn::Load(d, data + i + 7 * step));
  }
  s0 = hn::Add(hn::Add(s0, s1), hn::Add(s2, s3));
  s4 = hn::Add(hn::Add(s4, s5), hn::Add(s6, s7));
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s4)));
}

}  // namespace ei::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ei::bench {
namespace {

HWY_EXPORT(fma_rounds);
HWY_EXPORT(fma_flops_a_round);
HWY_EXPORT(read);

constexpr int64_t kHugePage = int64_t{2} << 20;

// f(thread) on all threads at once, `repeats` times; the least seconds one took.
template <class F>
double best_seconds(int threads, int repeats, const F& f) {
  double best = 1e30;
  for (int r = 0; r < repeats; ++r) {
    std::chrono::steady_clock::time_point start;
#pragma omp parallel num_threads(threads)
    {
#pragma omp barrier
#pragma omp master
      start = std::chrono::steady_clock::now();
      f(omp_get_thread_num());
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count());
  }
  return best;
}

struct Free {
  void operator()(float* data) const { std::free(data); }
};

// Each thread reads its own array of n_bytes `times` over, which it wrote first: its memory is
// near.
double read_rate(int threads, int64_t n_bytes, int64_t times, int repeats) {
  std::vector<std::unique_ptr<float, Free>> arrays(static_cast<size_t>(threads));
  for (auto& array : arrays) {
    array.reset(static_cast<float*>(std::aligned_alloc(kHugePage, static_cast<size_t>(n_bytes))));
    if (!array) throw std::bad_alloc();
    madvise(array.get(), static_cast<size_t>(n_bytes), MADV_HUGEPAGE);
  }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (size_t t = 0; t < arrays.size(); ++t)
    std::memset(arrays[t].get(), 0, static_cast<size_t>(n_bytes));
  volatile float sink = 0;
  const double seconds = best_seconds(threads, repeats, [&](int t) {
    float sum = 0;
    for (int64_t i = 0; i < times; ++i)
      sum += HWY_DYNAMIC_DISPATCH(read)(arrays[static_cast<size_t>(t)].get(), n_bytes / 4);
    if (sum != 0) sink = sum;
  });
  return double(threads) * double(n_bytes) * double(times) / seconds;
}

int64_t cache_bytes(int name, int64_t otherwise) {
  const int64_t bytes = sysconf(name);
  return bytes > 0 ? bytes : otherwise;
}

}  // namespace

double measure_fma_flops(int threads) {
  constexpr int64_t kRounds = 1'000'000;
  volatile float sink = 0;
  const double seconds =
      best_seconds(threads, 40, [&](int) { sink = HWY_DYNAMIC_DISPATCH(fma_rounds)(kRounds); });
  return double(threads) * double(kRounds * HWY_DYNAMIC_DISPATCH(fma_flops_a_round)()) / seconds;
}

// Four sums, as many as a product has; their factors stay in registers.
double measure_tile_flops(int threads) {
  if (cpu::tiles() != cpu::Tiles::kAmx) return 0;
  constexpr int64_t kRounds = 100'000;
  alignas(64) uint16_t ones[cpu::kAmxTile];
  std::fill(std::begin(ones), std::end(ones), uint16_t{0x3F80});
  const double seconds = best_seconds(threads, 40, [&](int) {
    using cpu::Amx;
    Amx::begin();
    Amx::zero<0>(), Amx::zero<1>(), Amx::zero<2>(), Amx::zero<3>();
    Amx::load<4>(ones, 64), Amx::load<5>(ones, 64);
    for (int64_t i = 0; i < kRounds; ++i) {
      Amx::multiply<0, 4, 5>(), Amx::multiply<1, 4, 5>();
      Amx::multiply<2, 4, 5>(), Amx::multiply<3, 4, 5>();
    }
    Amx::end();
  });
  constexpr double kFlops = 4 * 2.0 * cpu::kAmxRows * cpu::kAmxRows * cpu::kAmxDepth;
  return threads * kRounds * kFlops / seconds;
}

// Far more than the cores' last-level cache holds.
double measure_memory_bytes(int threads) {
  const int64_t n_bytes = (int64_t{512} << 20) / threads / kHugePage * kHugePage;
  return read_rate(threads, std::max(n_bytes, kHugePage), 1, 15);
}

// Half of it, which leaves room for all else.
double measure_l2_bytes(int threads) {
  const int64_t n_bytes = cache_bytes(_SC_LEVEL2_CACHE_SIZE, int64_t{512} << 10) / 2 / 4096 * 4096;
  return read_rate(threads, n_bytes, (int64_t{64} << 20) / n_bytes, 40);
}

}  // namespace ei::bench
#endif  // HWY_ONCE
