#include "ei/cpu/team.h"

#include <exception>

#include "ei/base/affinity.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ei::cpu {
namespace {

// 50 to 200 us: longer than what lies between two loops of a token, shorter than what a scheduler
// gives to somebody else meanwhile.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Waits until the value is no longer `old`.
template <class T>
void await(const std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

Team& Team::mine() {
  thread_local Team team;
  return team;
}

Team::~Team() {
  over_.store(true, std::memory_order_relaxed);
  loop_.fetch_add(1, std::memory_order_release);
  loop_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Team::grow(int n_threads) {
  try {
    while (std::ssize(threads_) + 1 < n_threads) {
      const int thread = static_cast<int>(threads_.size()) + 1;
      threads_.emplace_back(&Team::serve, this, thread);
      place(thread);
    }
  } catch (const std::exception&) {  // no memory or no more threads: those there are do it
  }
}

void Team::place(int thread) {
  const auto i = static_cast<size_t>(thread);
  if (i < cpus_.size()) set_cpus(threads_[i - 1].native_handle(), {cpus_[i]});
}

void Team::pin(const std::vector<int>& cpus) {
  if (cpus == cpus_) return;
  cpus_ = cpus;
  const std::vector<int> allowed = allowed_cpus();
  for (int i = 1; i <= std::ssize(threads_); ++i) {
    set_cpus(threads_[static_cast<size_t>(i) - 1].native_handle(), allowed);
    place(i);
  }
}

Pinned::Pinned(const std::vector<int>& cpus) {
  Team::mine().pin(cpus);
  if (cpus.empty()) return;
  before_ = allowed_cpus();
  set_cpus(pthread_self(), {cpus[0]});
}

Pinned::~Pinned() {
  if (!before_.empty()) set_cpus(pthread_self(), before_);
}

void Team::run(int n_threads, int64_t n, Call call, const void* context) {
  grow(n_threads);
  const uint32_t loop = loop_.load(std::memory_order_relaxed) + 1;
  // Closed until all of the loop is there. Every call of the loop before has returned, but a thread
  // may come late for it: who sees the new n sees that his next call is no longer the next.
  next_.store(uint64_t{loop} << 32 | UINT32_MAX, std::memory_order_relaxed);
  n_.store(n, std::memory_order_release);
  n_threads_.store(n_threads, std::memory_order_relaxed);
  call_.store(call, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  left_.store(n, std::memory_order_relaxed);
  next_.store(uint64_t{loop} << 32, std::memory_order_release);
  loop_.store(loop, std::memory_order_seq_cst);  // before notify_all() looks who sleeps
  loop_.notify_all();
  work(loop, 0);
  for (int64_t left; (left = left_.load(std::memory_order_acquire)) > 0;) await(left_, left);
}

void Team::work(uint32_t loop, int thread) {
  int64_t n_done = 0;
  uint64_t next = next_.load(std::memory_order_acquire);
  while (next >> 32 == loop) {
    const int64_t i = static_cast<int64_t>(next & UINT32_MAX);
    const Call call = call_.load(std::memory_order_relaxed);
    const void* context = context_.load(std::memory_order_relaxed);
    if (i >= n_.load(std::memory_order_acquire) ||
        thread >= n_threads_.load(std::memory_order_relaxed))
      break;
    if (!next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel,
                                     std::memory_order_acquire))
      continue;
    call(context, i, thread);
    ++n_done;
    next = next_.load(std::memory_order_acquire);
  }
  if (n_done > 0 && left_.fetch_sub(n_done, std::memory_order_acq_rel) == n_done)
    left_.notify_all();
}

void Team::serve(int thread) {
  // A thread that is new may find a loop under way.
  for (uint32_t seen = 0; !over_.load(std::memory_order_relaxed);) {
    await(loop_, seen);
    seen = loop_.load(std::memory_order_acquire);
    work(seen, thread);
  }
}

}  // namespace ei::cpu
