#include "apps/cli/input.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "apps/cli/ranks.h"
#include "apps/cli/units.h"
#include "ei/base/fail.h"
#include "ei/base/utf8.h"

namespace ei::cli {
namespace {

std::string read_all(std::FILE* file, const std::string& name, int64_t max_bytes) {
  std::string text;
  std::array<char, 1 << 16> piece;
  while (const size_t n = std::fread(piece.data(), 1, piece.size(), file)) {
    text.append(piece.data(), n);
    require(std::ssize(text) <= max_bytes,
            "{}: longer than {}; such a text does not fit the model's context", name,
            human_bytes(max_bytes));
  }
  require(std::ferror(file) == 0, "{}: {}", name, std::strerror(errno));
  require_utf8(text, name);
  return text;
}

// Whoever has forgotten that a pipe is open there waits for ever.
void say_when_waiting() {
  pollfd in = {.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
  if (poll(&in, 1, /*milliseconds=*/2000) == 0)
    fmt::print(stderr, "waiting for standard input; `</dev/null` says that there is none\n");
}

}  // namespace

std::string read_text(const std::filesystem::path& path, int64_t max_bytes) {
  if (path == "-") return read_stdin(max_bytes);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"),
                                                             std::fclose);
  require(file != nullptr, "{}: {}", path.string(), std::strerror(errno));
  return read_all(file.get(), path.string(), max_bytes);
}

std::string read_stdin(int64_t max_bytes) {
  if (has_ranks() && ranks()->rank() > 0) return of_first_rank({});
  say_when_waiting();
  return of_first_rank(read_all(stdin, "standard input", max_bytes));
}

void check_readable(const std::filesystem::path& path) {
  struct stat status {};
  if (path == "-") return;
  const bool is_there = stat(path.c_str(), &status) == 0;
  require(is_there, "{}: {}", path.string(), std::strerror(errno));
  require(!S_ISDIR(status.st_mode), "{}: is a directory, expected a file", path.string());
  const bool is_readable = access(path.c_str(), R_OK) == 0;
  require(is_readable, "{}: {}", path.string(), std::strerror(errno));
}

}  // namespace ei::cli
