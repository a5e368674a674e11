#include "tests/cli/program.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "ei/io/json.h"
#include "tests/support/files.h"

namespace ei::cli {

Finished run_program(const std::string& arguments, const std::string& input,
                     const std::string& before) {
  const test::TempDir dir;
  test::write_file(dir / "in", input);
  const std::string path = dir.path().string();
  // The arguments come last: a redirection among them wins over ours.
  const int status = std::system(
      fmt::format("{0} <{3}/in >{3}/out 2>{3}/err {1} {2}", before, EI_PROGRAM, arguments, path)
          .c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(dir / "out"),
          read_file(dir / "err")};
}

OnTerminal::OnTerminal(const std::vector<std::string>& arguments) {
  winsize size{.ws_row = 40, .ws_col = 100, .ws_xpixel = 0, .ws_ypixel = 0};
  std::vector<char*> argv = {const_cast<char*>(EI_PROGRAM)};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_ = forkpty(&terminal_, nullptr, nullptr, &size);
  if (pid_ == 0) {
    setenv("TERM", "xterm", 1);
    execv(EI_PROGRAM, argv.data());
    _exit(127);
  }
}

OnTerminal::~OnTerminal() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(terminal_);
}

void OnTerminal::type(const std::string& keys) {
  EXPECT_EQ(write(terminal_, keys.data(), keys.size()), ssize_t(keys.size()));
}

std::string OnTerminal::wait_for(const std::string& text) {
  for (;;) {
    if (const size_t at = seen_.find(text); at != std::string::npos) {
      const std::string before = seen_.substr(0, at + text.size());
      seen_.erase(0, before.size());
      return before;
    }
    char buffer[4096];
    const ssize_t n = read(terminal_, buffer, sizeof buffer);
    if (n <= 0) {
      ADD_FAILURE() << "the program ended before it said \"" << text << "\", after:\n" << seen_;
      return seen_;
    }
    seen_.append(buffer, size_t(n));
  }
}

int OnTerminal::wait_for_exit() {
  char buffer[4096];
  while (read(terminal_, buffer, sizeof buffer) > 0) {
  }
  int status = 0;
  waitpid(std::exchange(pid_, -1), &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace ei::cli
