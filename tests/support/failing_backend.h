#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "ei/base/error.h"
#include "ei/ops/backend.h"

namespace ei::test {

// Another backend that fails once, at a call that is given by its number, and counts the memory it
// has handed out.
class FailingBackend final : public Backend {
 public:
  explicit FailingBackend(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  static constexpr const char* kMessage = "made to fail";
  // The k-th call from now on of allocate(), copy_in(), copy_out() or run() throws; 0: none does.
  void fail_at(int64_t k) { n_left_ = k; }
  bool failed() const { return n_left_ <= 0; }
  int64_t bytes() const { return bytes_; }
  int64_t n_embedded() const { return n_embedded_; }  // tokens, prompts' and answers'

  std::string name() const override { return backend_->name(); }
  int64_t act_bytes() const override { return backend_->act_bytes(); }
  int64_t prompt_rows() const override { return backend_->prompt_rows(); }
  int64_t available_bytes() const override { return backend_->available_bytes(); }
  void* allocate(int64_t bytes) override {
    count();
    void* data = backend_->allocate(bytes);
    bytes_ += bytes;
    return data;
  }
  void release(void* data, int64_t bytes) noexcept override {
    bytes_ -= bytes;
    backend_->release(data, bytes);
  }
  void discard(void* data, int64_t bytes) noexcept override { backend_->discard(data, bytes); }
  void copy_in(void* device, const void* host, int64_t bytes) override {
    count();
    backend_->copy_in(device, host, bytes);
  }
  void copy_out(void* host, const void* device, int64_t bytes) override {
    count();
    backend_->copy_out(host, device, bytes);
  }
  Weight place(const Weight& host) override { return backend_->place(host); }

#define EI_FAILING_RUN(Op)          \
  void run(const Op& op) override { \
    count();                        \
    look_at(op);                    \
    backend_->run(op);              \
  }
  EI_OPS(EI_FAILING_RUN)
#undef EI_FAILING_RUN

 private:
  void count() {
    if (n_left_ > 0 && --n_left_ == 0) throw Error(kMessage);
  }
  template <class Op>
  void look_at(const Op&) {}
  void look_at(const Embed& op) { n_embedded_ += op.tokens.dim(0); }

  std::unique_ptr<Backend> backend_;
  std::atomic<int64_t> n_left_ = 0, bytes_ = 0, n_embedded_ = 0;
};

}  // namespace ei::test
