#include "apps/cli/lost_file.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <charconv>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "apps/cli/command.h"
#include "apps/cli/terminal.h"

// In a signal handler, perhaps in the middle of malloc(): no memory, no streams, no locks.
namespace ei::cli {
namespace {

// The file that a line of /proc/self/maps maps around `address`; empty if it is another mapping.
//   7f2a1c000000-7f2a1d000000 r--s 00000000 fe:00 131 /models/needle-8m/model.safetensors
std::string_view file_at(uintptr_t address, std::string_view line) {
  uintptr_t begin = 0, end = 0;
  const char* const last = line.data() + line.size();
  const auto [dash, first_error] = std::from_chars(line.data(), last, begin, 16);
  if (first_error != std::errc() || dash == last) return {};
  if (std::from_chars(dash + 1, last, end, 16).ec != std::errc()) return {};
  const size_t path = line.find('/');
  return address >= begin && address < end && path != line.npos ? line.substr(path)
                                                                : std::string_view();
}

void say(std::string_view text) {
  [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, text.data(), text.size());
}

// Says which file it was, if there is one at the address.
bool blame_file(uintptr_t address) {
  static char buffer[1 << 14];
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  size_t size = 0;
  for (ssize_t n; (n = read(maps, buffer + size, sizeof buffer - size)) > 0;) {
    size += static_cast<size_t>(n);
    std::string_view rest(buffer, size);
    for (size_t end; (end = rest.find('\n')) != rest.npos; rest.remove_prefix(end + 1)) {
      const std::string_view file = file_at(address, rest.substr(0, end));
      if (file.empty()) continue;
      restore_terminal();
      say("\nentropyinfer: ");
      say(file);
      say(": cannot be read any more: it was made shorter, or its disk fails. A model's files must "
          "not be changed while it is in use; replace them by renaming.\n");
      return true;
    }
    std::memmove(buffer, rest.data(), size = rest.size());
  }
  return false;
}

void on_bus_error(int signal, siginfo_t* info, void*) {
  if (blame_file(reinterpret_cast<uintptr_t>(info->si_addr))) _exit(kExitError);
  ::signal(signal, SIG_DFL);  // something else, which happens again now
}

}  // namespace

void report_lost_files() {
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace ei::cli
