#include "ei/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "ei/base/fail.h"
#include "ei/io/errno_text.h"

namespace ei {
namespace {

struct stat status_of(int file, const std::string& path) {
  struct stat status {};
  const bool ok = ::fstat(file, &status) == 0;
  require(ok, "{}: {}", path, errno_text());
  return status;
}

}  // namespace

void refuse_lfs_pointer(std::string_view bytes, const std::string& path) {
  require(!bytes.starts_with("version https://git-lfs.github.com/spec/"),
          "{}: holds a git-lfs pointer, not the file itself; run `git lfs install && git lfs pull` "
          "in its directory, or download the file",
          path);
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path.string()) {
  // `opened` closes the file when something throws. Not blocking, lest a pipe in place of the file
  // hangs the program.
  MappedFile opened;
  opened.file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  require(opened.file_ >= 0, "{}: cannot be opened: {}", path_, errno_text());
  const struct stat status = status_of(opened.file_, path_);
  require(S_ISREG(status.st_mode), "{}: not a regular file", path_);
  if (status.st_size > 0) {
    const auto size = static_cast<size_t>(status.st_size);
    void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, opened.file_, 0);
    require(data != MAP_FAILED, "{}: cannot be mapped into memory: {}", path_, errno_text());
    opened.bytes_ = {static_cast<const std::byte*>(data), size};
    refuse_lfs_pointer({static_cast<const char*>(data), size}, path_);
  }
  std::swap(file_, opened.file_);
  std::swap(bytes_, opened.bytes_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::exchange(other.file_, -1)),
      bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(file_, other.file_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  if (file_ >= 0) ::close(file_);
}

void MappedFile::check_size() const {
  const struct stat status = status_of(file_, path_);
  require(static_cast<size_t>(status.st_size) == bytes_.size(),
          "{}: its size changed from {} to {} bytes while it was read; wait until it is complete",
          path_, bytes_.size(), status.st_size);
}

void MappedFile::let_go(std::span<const std::byte> part) const {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = [](const std::byte* at) { return reinterpret_cast<uintptr_t>(at); };
  const uintptr_t begin = std::max(address(part.data()), address(bytes_.data()));
  const uintptr_t end =
      std::min(address(part.data() + part.size()), address(bytes_.data() + bytes_.size()));
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace ei
