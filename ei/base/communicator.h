#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "ei/base/error.h"

namespace ei {

// The ranks that compute one model together, a slice each, in MPI's words: every rank makes the
// same calls in the same order, and a call returns once all have made theirs. Of memory of the
// host. Whoever fails between two calls must abort(), so that nobody waits for it in vain; one that
// dies is the implementation's matter, and so is one that hangs (Patience). One thread at a time.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;  // of this one: 0 to size() - 1
  virtual int size() const = 0;
  virtual int local_rank() const = 0;  // among those of the same host
  // values = their sum over all ranks.
  virtual void sum(std::span<float> values) = 0;
  // all [size, mine.size()]: what every rank has, in their order. Of one length on all.
  virtual void gather(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
  // bytes = those of rank 0.
  virtual void broadcast(std::span<std::byte> bytes) = 0;
  // Ends all ranks, for what this one cannot go on from.
  [[noreturn]] virtual void abort(const std::string& why) = 0;
  // Told why the ranks have ended, once, by the thread that sees it; calls of this rank throw it
  // from then on. Without, and where ranks are processes, they end with the job.
  virtual void on_end(std::function<void(const std::string&)>) {}
  // Why the ranks have ended, if they have and this one lives on; else "". Any thread.
  virtual std::string failure() const { return {}; }
};

// The only rank of a model that nobody shares.
class OneRank final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_rank() const override { return 0; }
  void sum(std::span<float>) override {}
  void gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    std::ranges::copy(mine, all.begin());
  }
  void broadcast(std::span<std::byte>) override {}
  [[noreturn]] void abort(const std::string& why) override { throw Error(why); }
};

// What follows takes plain numbers and structs.

// The value of rank 0.
template <class T>
T of_first(Communicator& ranks, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  ranks.broadcast(std::as_writable_bytes(std::span(&value, 1)));
  return value;
}

// [size] The value of every rank.
template <class T>
std::vector<T> of_all(Communicator& ranks, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<T> all(static_cast<size_t>(ranks.size()));
  ranks.gather(std::as_bytes(std::span(&value, 1)), std::as_writable_bytes(std::span(all)));
  return all;
}

// Their sum.
template <class T>
T sum_of_all(Communicator& ranks, T value) {
  T sum = 0;
  for (const T of_rank : of_all(ranks, value)) sum += of_rank;
  return sum;
}

}  // namespace ei
