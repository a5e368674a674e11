#include "apps/mpi/mpi.h"

#include <fmt/format.h>
#include <mpi.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "ei/base/fail.h"
#include "ei/base/patience.h"

namespace ei::mpi {
namespace {

// A process of the same host, of whose end one hears by a descriptor.
struct Neighbour {
  int rank;
  pid_t pid;
  ino_t processes;  // the namespace that its pid is of

  static Neighbour self(int rank) {
    struct stat numbers {};
    stat("/proc/self/ns/pid", &numbers);
    return {rank, getpid(), numbers.st_ino};
  }
};

// Whoever is not there any more ends the others' calls, and them: so MPI handles its errors unless
// it is told otherwise, and so its launchers do when a process is killed, a second later. A rank
// that has something to say before it ends (on_end) looks for itself whether its neighbours live;
// one that hangs is seen by those that wait for its part of a sum or a gather (Patience).
class MpiRanks final : public Communicator {
 public:
  MpiRanks() {
    int threads = 0;  // one at a time, but not always the same
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &threads);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    meet_neighbours();
    if (threads < MPI_THREAD_SERIALIZED) {
      MPI_Finalize();
      fail("this MPI allows calls from the first thread alone, expected MPI_THREAD_SERIALIZED");
    }
    watcher_ = std::jthread([this](const std::stop_token& stop) { watch(stop); });
  }
  ~MpiRanks() override {
    watcher_ = {};  // stops it
    MPI_Finalize();
  }
  MpiRanks(const MpiRanks&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return local_rank_; }
  void sum(std::span<float> values) override {
    MPI_Request call;
    check();
    patience_.begin();
    if (values.size() <= kSmallSum) {
      MPI_Iallreduce(MPI_IN_PLACE, values.data(), count(values.size()), MPI_FLOAT, MPI_SUM,
                     MPI_COMM_WORLD, &call);
      return wait(call);
    }
    MPI_Ibarrier(MPI_COMM_WORLD, &call);
    wait(call);
    patience_.begin();
    MPI_Allreduce(MPI_IN_PLACE, values.data(), count(values.size()), MPI_FLOAT, MPI_SUM,
                  MPI_COMM_WORLD);
    patience_.end();
  }
  void gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    require(all.size() == mine.size() * static_cast<size_t>(size_),
            "gather: {} bytes for {} of each of {} ranks", all.size(), mine.size(), size_);
    MPI_Request call;
    check();
    patience_.begin();
    MPI_Iallgather(mine.data(), count(mine.size()), MPI_BYTE, all.data(), count(mine.size()),
                   MPI_BYTE, MPI_COMM_WORLD, &call);
    wait(call);
  }
  void broadcast(std::span<std::byte> bytes) override {
    MPI_Request call;
    check();
    if (rank_ == 0) patience_.begin();
    MPI_Ibcast(bytes.data(), count(bytes.size()), MPI_BYTE, /*root=*/0, MPI_COMM_WORLD, &call);
    wait(call, /*may_sleep=*/true);  // what an idle server says may be long in coming
  }
  [[noreturn]] void abort(const std::string& why) override {
    end(fmt::format("rank {} of {}: {}", rank_, size_, why));
    throw Error(failure());
  }
  void on_end(std::function<void(const std::string&)> told) override {
    const std::lock_guard lock(mutex_);
    told_ = std::move(told);
  }
  std::string failure() const override {
    const std::lock_guard lock(mutex_);
    return failure_;
  }

 private:
  // Of more numbers, MPI's sums that do not wait take twice the time of those that do: these begin
  // once all ranks are there, and so are waited for for milliseconds at most.
  static constexpr size_t kSmallSum = 16384;

  void meet_neighbours() {
    MPI_Comm host = MPI_COMM_NULL;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host);
    MPI_Comm_rank(host, &local_rank_);
    const Neighbour self = Neighbour::self(rank_);
    std::vector<Neighbour> all(static_cast<size_t>(size_));  // or fewer
    MPI_Allgather(&self, sizeof self, MPI_BYTE, all.data(), sizeof self, MPI_BYTE, host);
    MPI_Comm_free(&host);
    for (const Neighbour& other : all) {
      if (other.pid == self.pid || other.processes != self.processes) continue;
      const auto descriptor = static_cast<int>(syscall(SYS_pidfd_open, other.pid, 0));
      if (descriptor < 0) continue;  // a kernel before 5.3: the launcher sees it
      neighbours_.push_back(other);
      lives_.push_back({.fd = descriptor, .events = POLLIN, .revents = 0});
    }
  }
  void watch(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      poll(lives_.data(), lives_.size(), /*ms=*/0);
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      for (size_t i = 0; i < lives_.size(); ++i)
        if (lives_[i].revents != 0 && is_told())
          return end(fmt::format("rank {} of {} has ended", neighbours_[i].rank, size_));
      if (patience_.over())
        return end(
            fmt::format("rank {} of {}: another rank does not answer any more", rank_, size_));
    }
  }
  bool is_told() const {
    const std::lock_guard lock(mutex_);
    return told_ != nullptr;
  }
  // Once: says why to whoever is told, and all calls throw it; or ends the job.
  void end(const std::string& why) {
    std::function<void(const std::string&)> told;
    {
      const std::lock_guard lock(mutex_);
      if (!failure_.empty()) return;
      failure_ = why;
      told = told_;
    }
    ended_ = told != nullptr;
    if (!told || rank_ > 0) {  // rank 0 alone has a standard error
      std::fprintf(errors_, "entropyinfer: %s\n", why.c_str());
      std::fflush(errors_);
    }
    if (told) return told(why);
    MPI_Abort(MPI_COMM_WORLD, /*exit code*/ 1);
    std::abort();  // not reached
  }
  void check() const {
    if (ended_) throw Error(failure());
  }
  // MPI waits by looking, at all of a core.
  void wait(MPI_Request& call, bool may_sleep = false) {
    const auto begin = std::chrono::steady_clock::now();
    for (int done = 0; true;) {
      MPI_Test(&call, &done, MPI_STATUS_IGNORE);
      if (done != 0) return patience_.end();
      check();
      if (may_sleep && std::chrono::steady_clock::now() - begin > std::chrono::milliseconds(5))
        std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  }
  static int count(size_t n) {
    require(n <= INT32_MAX, "{} numbers at a time are too many for MPI; set a smaller chunk", n);
    return static_cast<int>(n);
  }

  int rank_ = 0, size_ = 1, local_rank_ = 0;
  std::vector<Neighbour> neighbours_;
  std::vector<pollfd> lives_;  // readable once they have ended
  Patience patience_;
  mutable std::mutex mutex_;  // of what follows
  std::function<void(const std::string&)> told_;
  std::string failure_;
  std::atomic<bool> ended_ = false;
  // Errors of any rank are heard, whatever becomes of its standard error.
  std::FILE* errors_ = fdopen(dup(STDERR_FILENO), "w");
  std::jthread watcher_;
};

bool launched() { return std::getenv("PMIX_RANK") != nullptr; }

}  // namespace

std::shared_ptr<Communicator> ranks() {
  static const auto all = launched() ? std::make_shared<MpiRanks>() : nullptr;
  return all;
}

}  // namespace ei::mpi
