#include "apps/cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include "apps/cli/terminal.h"

namespace ei::cli {
namespace {

sigset_t interrupts() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

Interrupts::Interrupts() {
  remember_terminal();
  const sigset_t set = interrupts();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  watcher_ = std::jthread([this](const std::stop_token& end) { watch(end); });
}

Interrupts::~Interrupts() {
  watcher_.request_stop();
  pthread_kill(watcher_.native_handle(), SIGINT);  // wakes it
}

void Interrupts::watch(const std::stop_token& end) {
  const sigset_t set = interrupts();
  for (int signal = 0; sigwait(&set, &signal) == 0 && !end.stop_requested();) {
    const std::lock_guard lock(mutex_);
    if (scope_ && scope_->request_stop()) continue;
    restore_terminal();
    _exit(128 + signal);  // kExitInterrupted for SIGINT
  }
}

Interrupts::Scope::Scope(Interrupts& interrupts) : interrupts_(interrupts) {
  const std::lock_guard lock(interrupts_.mutex_);
  token_ = interrupts_.scope_.emplace().get_token();
}

Interrupts::Scope::~Scope() {
  const std::lock_guard lock(interrupts_.mutex_);
  interrupts_.scope_.reset();
}

}  // namespace ei::cli
