#include "tests/support/thread_ranks.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "ei/base/fail.h"

namespace ei::test {
namespace {

// What the ranks share. All meet twice in a call: once everybody's memory may be read, and once it
// was.
struct Meeting {
  explicit Meeting(int n) : memory(static_cast<size_t>(n)) {}

  void wait() {
    std::unique_lock lock(mutex);
    const uint64_t mine = n_meetings;
    if (++n_here == std::ssize(memory)) {
      n_here = 0;
      ++n_meetings;
      changed.notify_all();
    }
    changed.wait(lock, [&] { return n_meetings != mine || error; });
    require(!error, "another rank has failed");
  }
  void fail(std::exception_ptr failure) {
    const std::lock_guard lock(mutex);
    if (!error) error = std::move(failure);
    changed.notify_all();
  }

  std::mutex mutex;
  std::condition_variable changed;
  int64_t n_here = 0;
  uint64_t n_meetings = 0;
  std::exception_ptr error;
  std::vector<std::span<const std::byte>> memory;  // of every rank, while all are in a call
};

class ThreadRank final : public Communicator {
 public:
  ThreadRank(Meeting& meeting, int rank) : meeting_(meeting), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(meeting_.memory.size()); }
  void sum(std::span<float> values) override {
    std::vector<float> total(values.size());
    meet(std::as_bytes(values), [&](int, std::span<const std::byte> theirs) {
      const auto* other = reinterpret_cast<const float*>(theirs.data());
      for (size_t i = 0; i < total.size(); ++i) total[i] += other[i];
    });
    std::ranges::copy(total, values.begin());
  }
  void gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    require(all.size() == mine.size() * meeting_.memory.size(), "gather: {} bytes of {} for {}",
            mine.size(), all.size(), size());
    meet(mine, [&](int r, std::span<const std::byte> theirs) {
      std::ranges::copy(theirs, all.begin() + r * std::ssize(mine));
    });
  }
  void broadcast(std::span<std::byte> bytes) override {
    const std::vector<std::byte> mine(bytes.begin(), bytes.end());
    meet(mine, [&](int r, std::span<const std::byte> theirs) {
      if (r == 0) std::ranges::copy(theirs, bytes.begin());
    });
  }
  [[noreturn]] void abort(const std::string& why) override { fail("{}", why); }

 private:
  template <class Look>
  void meet(std::span<const std::byte> mine, const Look& look) {
    meeting_.memory[static_cast<size_t>(rank_)] = mine;
    meeting_.wait();
    for (int r = 0; r < size(); ++r) {
      const std::span<const std::byte> theirs = meeting_.memory[static_cast<size_t>(r)];
      require(theirs.size() == mine.size(), "rank {} came with {} bytes, rank {} with {}", r,
              theirs.size(), rank_, mine.size());
      look(r, theirs);
    }
    meeting_.wait();
  }

  Meeting& meeting_;
  int rank_;
};

}  // namespace

void run_ranks(int n, const std::function<void(const std::shared_ptr<Communicator>&)>& rank) {
  Meeting meeting(n);
  {
    std::vector<std::jthread> threads;
    for (int r = 0; r < n; ++r)
      threads.emplace_back([&, r] {
        try {
          rank(std::make_shared<ThreadRank>(meeting, r));
        } catch (...) {
          meeting.fail(std::current_exception());
        }
      });
  }
  if (meeting.error) std::rethrow_exception(meeting.error);
}

}  // namespace ei::test
