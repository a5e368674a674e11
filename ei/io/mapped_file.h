#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace ei {

// A file read through memory, without a copy. Throws Error naming the path when it is missing,
// unreadable, not a regular file or one that git-lfs has not fetched.
//
// The size is that of the moment of opening. When another program shortens the file after that,
// the system kills whoever reads the missing part (SIGBUS): a model directory must not be changed
// in place while it is in use; replace files by renaming, which leaves the old ones mapped whole.
// check_size() turns the common case, a copy or download still under way, into an Error.
//
// A program that wants to say so in its last words finds the file in the signal's handler
// (apps/cli/lost_file.h).
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::string& path() const { return path_; }

  // Throws Error unless the file still has the size it was opened with.
  void check_size() const;

  // Frees the memory of the pages that lie in `part`, where that is of this file; they are read
  // again if they are looked at.
  void let_go(std::span<const std::byte> part) const;

 private:
  MappedFile() = default;

  std::string path_;
  int file_ = -1;  // kept open for check_size()
  std::span<const std::byte> bytes_;
};

// Throws Error when `bytes` are what git leaves in place of a large file that git-lfs has not
// fetched.
void refuse_lfs_pointer(std::string_view bytes, const std::string& path);

}  // namespace ei
