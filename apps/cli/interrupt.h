#pragma once

#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>

namespace ei::cli {

// What Ctrl-C and SIGTERM do. Outside of a Scope they end the program (exit code 130 and 143);
// inside, the first one asks the scope's work to stop and a second one ends the program.
//
// Both are blocked and a thread of its own waits for them, so nothing runs in a signal handler. To
// be made before any other thread, which inherits the blocked signals.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  class Scope {
   public:
    explicit Scope(Interrupts& interrupts);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

    std::stop_token token() const { return token_; }
    bool interrupted() const { return token_.stop_requested(); }

   private:
    Interrupts& interrupts_;
    std::stop_token token_;
  };

 private:
  void watch(const std::stop_token& end);

  std::mutex mutex_;
  std::optional<std::stop_source> scope_;
  std::jthread watcher_;
};

}  // namespace ei::cli
