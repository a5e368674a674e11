#include "ei/base/thread_ranks.h"

#include <pthread.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "ei/base/fail.h"
#include "ei/base/patience.h"

namespace ei {
// What the ranks share. All meet twice in a call: once everybody's memory may be read, and once it
// was.
struct ThreadRanks::Meeting {
  Meeting(int n, std::function<void(const std::string&)> on_end)
      : on_end(std::move(on_end)), memory(static_cast<size_t>(n)) {}

  int size() const { return static_cast<int>(memory.size()); }
  std::string named(int rank, const std::string& why) const {
    return fmt::format("rank {} of {}: {}", rank, size(), why);
  }
  void wait(const Patience& patience) {
    std::unique_lock lock(mutex);
    if (!failure.empty()) throw Error(failure);
    const uint64_t mine = n_meetings;
    if (++n_here == size()) {
      n_here = 0;
      ++n_meetings;
      lock.unlock();  // those who are woken want it
      changed.notify_all();
      return;
    }
    const auto over = [&] { return n_meetings != mine || !failure.empty() || !left.empty(); };
    while (!over() && !patience.over())
      changed.wait_for(lock, std::chrono::milliseconds(100), over);
    if (n_meetings != mine) return;
    end(lock, !left.empty()
                  ? left
                  : fmt::format("{} of {} ranks do not answer any more", size() - n_here, size()));
    throw Error(failure);
  }
  // A rank that is not coming any more.
  void leave(int rank, const std::exception_ptr& error) {
    const std::lock_guard lock(mutex);
    if (left.empty()) left = named(rank, text_of(error));
    ++n_left;
    changed.notify_all();
  }
  void end(std::unique_lock<std::mutex>& lock, const std::string& why) {
    if (!failure.empty()) return;
    failure = why;
    changed.notify_all();
    if (!on_end) return;
    lock.unlock();
    on_end(why);
    lock.lock();
  }

  const std::function<void(const std::string&)> on_end;
  std::mutex running;  // one run at a time
  std::mutex mutex;    // of what follows
  std::condition_variable changed;
  int n_here = 0;
  uint64_t n_meetings = 0;
  int n_left = 0;                                  // of this run
  std::string left;                                // why the first has
  std::string failure;                             // why they have ended
  std::vector<std::span<const std::byte>> memory;  // of every rank, while all are in a call
};

class ThreadRanks::Rank final : public Communicator {
 public:
  Rank(std::shared_ptr<Meeting> meeting, int rank) : meeting_(std::move(meeting)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return meeting_->size(); }
  int local_rank() const override { return rank_; }
  void sum(std::span<float> values) override {
    std::vector<float> total(values.size());
    patience_.begin();
    meet(std::as_bytes(values), [&](int, std::span<const std::byte> theirs) {
      const auto* other = reinterpret_cast<const float*>(theirs.data());
      for (size_t i = 0; i < total.size(); ++i) total[i] += other[i];
    });
    patience_.end();
    std::ranges::copy(total, values.begin());
  }
  void gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    require(all.size() == mine.size() * meeting_->memory.size(), "gather: {} bytes of {} for {}",
            mine.size(), all.size(), size());
    patience_.begin();
    meet(mine, [&](int r, std::span<const std::byte> theirs) {
      std::ranges::copy(theirs, all.begin() + r * std::ssize(mine));
    });
    patience_.end();
  }
  // Whoever waits for rank 0 to say something does so as long as it takes; rank 0 is waited for by
  // all that do not hang.
  void broadcast(std::span<std::byte> bytes) override {
    const std::vector<std::byte> mine(bytes.begin(), bytes.end());
    if (rank_ == 0) patience_.begin();
    meet(mine, [&](int r, std::span<const std::byte> theirs) {
      if (r == 0) std::ranges::copy(theirs, bytes.begin());
    });
    patience_.end();
  }
  [[noreturn]] void abort(const std::string& why) override {
    std::unique_lock lock(meeting_->mutex);
    // One that waits in vain may wait for one that has left.
    meeting_->end(lock, meeting_->left.empty() ? meeting_->named(rank_, why) : meeting_->left);
    throw Error(why);
  }
  std::string failure() const override {
    const std::lock_guard lock(meeting_->mutex);
    return meeting_->failure;
  }

 private:
  template <class Look>
  void meet(std::span<const std::byte> mine, const Look& look) {
    meeting_->memory[static_cast<size_t>(rank_)] = mine;
    meeting_->wait(patience_);
    for (int r = 0; r < size(); ++r) {
      const std::span<const std::byte> theirs = meeting_->memory[static_cast<size_t>(r)];
      require(theirs.size() == mine.size(), "rank {} came with {} bytes, rank {} with {}", r,
              theirs.size(), rank_, mine.size());
      look(r, theirs);
    }
    meeting_->wait(patience_);
  }

  std::shared_ptr<Meeting> meeting_;
  int rank_;
  Patience patience_;
};

ThreadRanks::ThreadRanks(int n, std::function<void(const std::string&)> on_end)
    : meeting_(std::make_shared<Meeting>(n, std::move(on_end))) {
  for (int r = 0; r < n; ++r) ranks_.push_back(std::make_shared<Rank>(meeting_, r));
}

void ThreadRanks::run(const Work& work, int first) {
  const std::lock_guard one(meeting_->running);
  std::exception_ptr of_rank_0;
  const auto run_one = [&](const std::shared_ptr<Communicator>& rank) {
    try {
      work(rank);
    } catch (...) {
      if (rank->rank() == 0) of_rank_0 = std::current_exception();
      meeting_->leave(rank->rank(), std::current_exception());
    }
  };
  {
    std::vector<std::jthread> threads;
    for (size_t r = static_cast<size_t>(std::max(1, first)); r < ranks_.size(); ++r) {
      threads.emplace_back(run_one, ranks_[r]);
      pthread_setname_np(threads.back().native_handle(), fmt::format("rank {}", r).c_str());
    }
    if (first == 0) run_one(ranks_[0]);
  }
  std::unique_lock lock(meeting_->mutex);
  const std::string left = std::exchange(meeting_->left, "");
  const int n_left = std::exchange(meeting_->n_left, 0);
  if (n_left > 0 && n_left < meeting_->size()) meeting_->end(lock, left);
  if (of_rank_0) std::rethrow_exception(of_rank_0);
  if (n_left > 0) throw Error(left);
}

}  // namespace ei
