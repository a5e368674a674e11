#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ei/io/mapped_file.h"
#include "ei/io/tensor_info.h"

namespace ei {

// The tensors of a whole file in memory, pointing into it. Throws Error naming `where`, the tensor
// and the field unless the file is as the format demands: header size within the file and 32 MiB,
// no duplicate names, known dtypes, spans of shape times dtype that cover the data from its first
// byte to its last without hole or overlap. Also at most 65,536 tensors, names of at most 512 bytes
// and 16 dimensions, so that a small file cannot ask for much memory. `metadata` (null: not wanted)
// gets the texts of the header's __metadata__.
using Metadata = std::map<std::string, std::string, std::less<>>;
TensorMap parse_safetensors(std::span<const std::byte> file, std::string_view where,
                            Metadata* metadata = nullptr);

// What such a file begins with, whole words of 8 bytes: for tensors whose data, of which only the
// sizes count here, follow in this order.
std::string safetensors_header(std::span<const std::pair<std::string, TensorInfo>> tensors,
                               const Metadata& metadata);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path)
      : file_(path), tensors_(parse_safetensors(file_.bytes(), file_.path())) {}

  const std::string& path() const { return file_.path(); }
  const TensorMap& tensors() const { return tensors_; }
  void check_size() const { file_.check_size(); }
  void let_go(std::span<const std::byte> part) const { file_.let_go(part); }

 private:
  MappedFile file_;
  TensorMap tensors_;
};

// The weights of a model directory: the tensors of model.safetensors, or those that
// model.safetensors.index.json places in its shards; whatever else is there is not the model's.
class Checkpoint {
 public:
  // Throws Error when there is neither file, a shard is missing or named by a path, a tensor is not
  // where the index places it, or a file is malformed.
  explicit Checkpoint(const std::filesystem::path& dir);

  const TensorEntry* find(std::string_view name) const;  // nullptr: there is none
  const std::map<std::string_view, TensorEntry>& entries() const { return entries_; }
  const std::string& path() const { return path_; }  // of model.safetensors or the index
  void check_size() const;                           // as MappedFile's, of every file
  void let_go(std::span<const std::byte> part) const;

 private:
  std::string path_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string_view, TensorEntry> entries_;
};

}  // namespace ei
