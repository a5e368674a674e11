#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

namespace ei {

// A file that is written aside, and takes its name once it is whole: whoever looks sees the old one
// or all of the new one, whenever the program ends. Its owner alone may read it.
class NewFile {
 public:
  // Throws Error naming the path when it cannot be made.
  explicit NewFile(std::filesystem::path path);
  ~NewFile();  // without a commit() nothing remains
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // Both throw Error naming the path, when the disk is full for instance.
  void write(std::span<const std::byte> bytes);
  // Not to_disk: what a power cut leaves is for the reader to check.
  void commit(bool to_disk);

  // What names of files aside end with; a killed program leaves them.
  static constexpr const char* kSuffix = ".part";

 private:
  const std::filesystem::path path_, aside_;
  int file_ = -1;
};

}  // namespace ei
