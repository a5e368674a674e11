#include "ei/cuda/nccl.h"

#include <nccl.h>

#include <algorithm>
#include <future>

#include "ei/base/fail.h"
#include "ei/cuda/error.h"

namespace ei::cuda {
namespace {

void check_nccl(ncclResult_t code, const char* what, ncclComm_t comm) {
  require(code == ncclSuccess, "NCCL: {}: {}: {}", what, ncclGetErrorString(code),
          ncclGetLastError(comm));
}

}  // namespace

Nccl::Nccl(std::shared_ptr<Communicator> ranks, int device) : ranks_(std::move(ranks)) {
  connect(device);
  for (cudaEvent_t& event : sums_)
    EI_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  watcher_ = std::jthread([this, device](const std::stop_token& stop) { watch(stop, device); });
}

// NCCL waits for all ranks by itself, and for ever: in a thread that is left to it when one of them
// does not come.
void Nccl::connect(int device) {
  ncclUniqueId id{};
  if (ranks_->rank() == 0) check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId", nullptr);
  id = of_first(*ranks_, id);
  std::packaged_task<ncclComm_t()> task([id, device, rank = ranks_->rank(), n = ranks_->size()] {
    EI_CUDA(cudaSetDevice(device));
    ncclComm_t comm = nullptr;
    check_nccl(ncclCommInitRank(&comm, n, id, rank), "ncclCommInitRank", nullptr);
    return comm;
  });
  std::future<ncclComm_t> comm = task.get_future();
  std::thread(std::move(task)).detach();
  const auto limit = Patience::Clock::now() + kConnecting;
  while (comm.wait_for(std::chrono::milliseconds(100)) != std::future_status::ready) {
    if (const std::string why = ranks_->failure(); !why.empty()) throw Error(why);
    require(Patience::Clock::now() < limit, "NCCL: rank {} of {} does not reach the others",
            ranks_->rank(), ranks_->size());
  }
  comm_ = comm.get();
}

Nccl::~Nccl() {
  watcher_ = {};  // stops it
  for (const Window& window : windows_)
    if (comm_ != nullptr && window.window != nullptr)
      ncclCommWindowDeregister(comm_, window.window);
  if (comm_ != nullptr) ncclCommDestroy(comm_);
  for (const Window& window : windows_) ncclMemFree(window.data);
  for (cudaEvent_t event : sums_) cudaEventDestroy(event);
}

void* Nccl::allocate(int64_t bytes) {
  for (Window& window : windows_)
    if (!window.used && window.bytes == bytes) {
      window.used = true;
      return window.data;
    }
  void* data = nullptr;
  const bool is_there = ncclMemAlloc(&data, static_cast<size_t>(bytes)) == ncclSuccess;
  const bool all_are = sum_of_all(*ranks_, is_there ? 0 : 1) == 0;
  if (!all_are) {
    if (is_there) ncclMemFree(data);
    fail("no GPU memory for {} bytes on every rank", bytes);
  }
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw Error(failure_);
  Window& window = windows_.emplace_back(Window{data, bytes, nullptr, true});
  check_nccl(ncclCommWindowRegister(comm_, data, static_cast<size_t>(bytes), &window.window,
                                    NCCL_WIN_COLL_SYMMETRIC),
             "ncclCommWindowRegister", comm_);
  return data;
}

bool Nccl::release(void* data) noexcept {
  const auto it = std::ranges::find(windows_, data, &Window::data);
  if (it == windows_.end()) return false;
  it->used = false;
  return true;
}

void Nccl::watch(const std::stop_token& stop, int device) {
  cudaSetDevice(device);
  while (!stop.stop_requested()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (const std::string why = ranks_->failure(); !why.empty()) return give_up(why);
    if (!patience_.over()) continue;
    try {
      ranks_->abort("another rank does not answer any more");
    } catch (const Error&) {
      return give_up(ranks_->failure());
    }
  }
}

void Nccl::give_up(const std::string& why) {
  ncclComm_t comm = nullptr;
  {
    const std::lock_guard lock(mutex_);
    failure_ = why;
    comm = std::exchange(comm_, nullptr);
  }
  ncclCommAbort(comm);  // returns once the stream's graphs are gone
}

void Nccl::check() {
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw Error(failure_);
  ncclResult_t code = ncclSuccess;
  check_nccl(ncclCommGetAsyncError(comm_, &code), "ncclCommGetAsyncError", comm_);
  check_nccl(code, "a sum of the ranks", comm_);
}

void Nccl::all_reduce(void* x, int64_t n, cudaStream_t stream) {
  check();
  cudaStreamCaptureStatus capturing{};
  EI_CUDA(cudaStreamIsCapturing(stream, &capturing));
  const bool is_run = capturing == cudaStreamCaptureStatusNone;
  cudaEvent_t const sum = sums_[(is_run ? n_sums_++ : 0) % sums_.size()];
  if (is_run) {
    const Waiting waiting(this);
    EI_CUDA(cudaEventSynchronize(sum));
  }
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw Error(failure_);
  check_nccl(ncclAllReduce(x, x, static_cast<size_t>(n), ncclBfloat16, ncclSum, comm_, stream),
             "ncclAllReduce", comm_);
  if (is_run) EI_CUDA(cudaEventRecord(sum, stream));
}

void Nccl::all_gather(const float* part, float* out, int64_t rows, int64_t m, cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw Error(failure_);
  check_nccl(ncclGroupStart(), "ncclGroupStart", comm_);
  for (int64_t i = 0; i < rows; ++i)
    check_nccl(ncclAllGather(part + i * m, out + i * ranks_->size() * m, static_cast<size_t>(m),
                             ncclFloat32, comm_, stream),
               "ncclAllGather", comm_);
  check_nccl(ncclGroupEnd(), "ncclGroupEnd", comm_);
}

}  // namespace ei::cuda
