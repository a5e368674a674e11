#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "ei/base/communicator.h"
#include "ei/base/patience.h"

struct ncclComm;
struct ncclWindow_vidmem;

namespace ei::cuda {

// What ranks with a GPU each do together on their streams, by NVIDIA's NCCL. A thread looks after
// them: when another rank has given up, or this one has waited for its device so long that another
// must hang, it ends what is under way on the device, so that no wait lasts for ever, and the next
// check() throws.
class Nccl {
 public:
  // Made by all ranks at the same time, each with its device current. Throws Error naming what
  // NCCL says, or that this build has none.
  Nccl(std::shared_ptr<Communicator> ranks, int device);
  ~Nccl();
  Nccl(const Nccl&) = delete;

  // Memory of which every rank knows where the others' lies, so that their sums take half the time:
  // NCCL's symmetric windows. At the same time and of the same size on all ranks.
  void* allocate(int64_t bytes);
  bool release(void* data) noexcept;  // whether it is such memory; kept for the same size

  // x [n] of bf16 = its sum over the ranks.
  void all_reduce(void* x, int64_t n, cudaStream_t stream);
  // Rows of m floats: row i of `out` [rows, ranks * m] is row i of every rank's `part`.
  void all_gather(const float* part, float* out, int64_t rows, int64_t m, cudaStream_t stream);

  // Throws Error once the ranks have ended.
  void check();
  // Within its life the thread waits for the device.
  class Waiting {
   public:
    explicit Waiting(Nccl* nccl) : nccl_(nccl) {
      if (nccl_ != nullptr) nccl_->patience_.begin();
    }
    ~Waiting() {
      if (nccl_ != nullptr) nccl_->patience_.end();
    }
    Waiting(const Waiting&) = delete;

   private:
    Nccl* nccl_;
  };

 private:
  static constexpr std::chrono::seconds kConnecting{60};
  // Sums that the host is ahead of the device at most, so that what it waits for is soon done.
  static constexpr size_t kAhead = 16;
  struct Window {
    void* data;
    int64_t bytes;
    ncclWindow_vidmem* window;
    bool used;
  };
  void connect(int device);
  void watch(const std::stop_token& stop, int device);
  void give_up(const std::string& why);

  std::shared_ptr<Communicator> ranks_;
  std::mutex mutex_;  // of the communicator
  ncclComm* comm_ = nullptr;
  std::vector<Window> windows_;
  std::array<cudaEvent_t, kAhead> sums_{};  // when the last ones were done
  size_t n_sums_ = 0;
  std::string failure_;  // why it is gone
  Patience patience_;
  std::jthread watcher_;
};

}  // namespace ei::cuda
