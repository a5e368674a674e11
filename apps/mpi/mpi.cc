#include "apps/mpi/mpi.h"

#include <mpi.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "ei/base/fail.h"
#include "ei/base/patience.h"

namespace ei::mpi {
namespace {

// Whoever is not there any more ends the others' calls, and them: so MPI handles its errors unless
// it is told otherwise, and so its launchers do when a process is killed. One that hangs is seen by
// those that wait for its part of a sum or a gather (Patience): a thread of theirs ends all.
class MpiRanks final : public Communicator {
 public:
  MpiRanks() {
    int threads = 0;  // one at a time, but not always the same
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &threads);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    MPI_Comm host = MPI_COMM_NULL;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host);
    MPI_Comm_rank(host, &local_rank_);
    MPI_Comm_free(&host);
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
    patience_.begin();
    MPI_Allreduce(MPI_IN_PLACE, values.data(), count(values.size()), MPI_FLOAT, MPI_SUM,
                  MPI_COMM_WORLD);
    patience_.end();
  }
  void gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    require(all.size() == mine.size() * static_cast<size_t>(size_),
            "gather: {} bytes for {} of each of {} ranks", all.size(), mine.size(), size_);
    patience_.begin();
    MPI_Allgather(mine.data(), count(mine.size()), MPI_BYTE, all.data(), count(mine.size()),
                  MPI_BYTE, MPI_COMM_WORLD);
    patience_.end();
  }
  void broadcast(std::span<std::byte> bytes) override {
    if (rank_ == 0) patience_.begin();
    MPI_Request call;
    MPI_Ibcast(bytes.data(), count(bytes.size()), MPI_BYTE, /*root=*/0, MPI_COMM_WORLD, &call);
    // MPI waits by looking, at all of a core. What an idle server says may be long in coming.
    const auto begin = std::chrono::steady_clock::now();
    for (int done = 0; true;) {
      MPI_Test(&call, &done, MPI_STATUS_IGNORE);
      if (done != 0) return patience_.end();
      if (std::chrono::steady_clock::now() - begin > std::chrono::milliseconds(5))
        std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  }
  [[noreturn]] void abort(const std::string& why) override {
    std::fprintf(errors_, "entropyinfer: rank %d of %d: %s\n", rank_, size_, why.c_str());
    std::fflush(errors_);
    MPI_Abort(MPI_COMM_WORLD, /*exit code*/ 1);
    std::abort();  // not reached
  }

 private:
  void watch(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      if (patience_.over()) abort("another rank does not answer any more");
    }
  }
  static int count(size_t n) {
    require(n <= INT32_MAX, "{} numbers at a time are too many for MPI; set a smaller chunk", n);
    return static_cast<int>(n);
  }

  int rank_ = 0, size_ = 1, local_rank_ = 0;
  Patience patience_;
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
