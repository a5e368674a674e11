#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace ei::cpu {

// The threads of a loop, kept from one to the next. Whoever is free takes the next call, and nobody
// is waited for who has not taken one: on a core that somebody else uses as well a thread comes
// late, or not at all. Between loops threads look out for the next one for a moment, then sleep.
class Team {
 public:
  using Call = void (*)(const void* context, int64_t i, int thread);

  Team() = default;
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // call(context, i, thread) for i in [0, n), n < 2^32, on the calling thread, which is number 0,
  // and n_threads - 1 others, or as many as the system gives. The calls must not throw, nor begin a
  // loop of this team.
  void run(int n_threads, int64_t n, Call call, const void* context);

  // Keeps thread i on cpus[i] from now on, also where it does not exist yet, but for number 0,
  // which is the caller's to keep: Pinned does both. Empty: all may run where the calling thread
  // may.
  void pin(const std::vector<int>& cpus);

  // That of the calling thread.
  static Team& mine();

 private:
  void grow(int n_threads);
  void place(int thread);  // where `cpus_` has it
  void serve(int thread);
  // Takes calls of a loop until there are none left.
  void work(uint32_t loop, int thread);

  // The loop's number and its next call, in the upper and lower 32 bits. Whoever moves it on from
  // what it was when he looked at the rest has looked at that loop's. What is written for every
  // call, what is read for it, and what threads without one look at lie in cache lines of their
  // own.
  alignas(64) std::atomic<uint64_t> next_ = 0;
  alignas(64) std::atomic<int64_t> n_ = 0;
  std::atomic<int> n_threads_ = 0;
  std::atomic<Call> call_ = nullptr;
  std::atomic<const void*> context_ = nullptr;

  alignas(64) std::atomic<int64_t> left_ = 0;   // calls that have not returned
  alignas(64) std::atomic<uint32_t> loop_ = 0;  // the newest
  std::atomic<bool> over_ = false;
  std::vector<std::thread> threads_;
  std::vector<int> cpus_;  // that threads are pinned to; empty: none are
};

// While it lives: the calling thread's team on these CPUs, itself on the first. Then it may run
// where it could before, so that threads it starts do not inherit one CPU. Without CPUs nobody is
// pinned.
class Pinned {
 public:
  explicit Pinned(const std::vector<int>& cpus);
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;

 private:
  std::vector<int> before_;
};

}  // namespace ei::cpu
