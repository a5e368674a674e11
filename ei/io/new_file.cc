#include "ei/io/new_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "ei/base/fail.h"
#include "ei/io/errno_text.h"

namespace ei {

NewFile::NewFile(std::filesystem::path path)
    : path_(std::move(path)), aside_(fmt::format("{}.{}{}", path_.string(), getpid(), kSuffix)) {
  file_ = ::open(aside_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  require(file_ >= 0, "{}: cannot be written: {}", path_.string(), errno_text());
}

NewFile::~NewFile() {
  if (file_ < 0) return;
  ::close(file_);
  ::unlink(aside_.c_str());
}

void NewFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(file_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    require(n > 0, "{}: cannot be written: {}", path_.string(), errno_text());
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void NewFile::commit(bool to_disk) {
  bool whole = !to_disk || ::fsync(file_) == 0;
  whole = ::close(std::exchange(file_, -1)) == 0 && whole;
  if (whole && ::rename(aside_.c_str(), path_.c_str()) == 0) return;
  const std::string why = errno_text();
  ::unlink(aside_.c_str());
  fail("{}: cannot be written: {}", path_.string(), why);
}

}  // namespace ei
