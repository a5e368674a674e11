#include "apps/mpi/mpi.h"

#include <mpi.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "ei/base/fail.h"

namespace ei::mpi {
namespace {

// Whoever is not there any more ends the others' calls, and them: so MPI handles its errors unless
// it is told otherwise, and so its launchers do when a process is killed.
class MpiRanks final : public Communicator {
 public:
  MpiRanks() {
    int threads = 0;  // one at a time, but not always the same
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &threads);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    if (threads < MPI_THREAD_SERIALIZED) {
      MPI_Finalize();
      fail("this MPI allows calls from the first thread alone, expected MPI_THREAD_SERIALIZED");
    }
  }
  ~MpiRanks() override { MPI_Finalize(); }
  MpiRanks(const MpiRanks&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void sum(std::span<float> values) override {
    MPI_Allreduce(MPI_IN_PLACE, values.data(), count(values.size()), MPI_FLOAT, MPI_SUM,
                  MPI_COMM_WORLD);
  }
  void gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    require(all.size() == mine.size() * static_cast<size_t>(size_),
            "gather: {} bytes for {} of each of {} ranks", all.size(), mine.size(), size_);
    MPI_Allgather(mine.data(), count(mine.size()), MPI_BYTE, all.data(), count(mine.size()),
                  MPI_BYTE, MPI_COMM_WORLD);
  }
  void broadcast(std::span<std::byte> bytes) override {
    MPI_Request call;
    MPI_Ibcast(bytes.data(), count(bytes.size()), MPI_BYTE, /*root=*/0, MPI_COMM_WORLD, &call);
    // MPI waits by looking, at all of a core. What an idle server says may be long in coming.
    const auto begin = std::chrono::steady_clock::now();
    for (int done = 0; true;) {
      MPI_Test(&call, &done, MPI_STATUS_IGNORE);
      if (done != 0) return;
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
  static int count(size_t n) {
    require(n <= INT32_MAX, "{} numbers at a time are too many for MPI; set a smaller chunk", n);
    return static_cast<int>(n);
  }

  int rank_ = 0, size_ = 1;
  // Errors of any rank are heard, whatever becomes of its standard error.
  std::FILE* errors_ = fdopen(dup(STDERR_FILENO), "w");
};

bool launched() { return std::getenv("PMIX_RANK") != nullptr; }

}  // namespace

std::shared_ptr<Communicator> ranks() {
  static const auto all = launched() ? std::make_shared<MpiRanks>() : nullptr;
  return all;
}

}  // namespace ei::mpi
