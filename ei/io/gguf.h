#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ei/io/mapped_file.h"
#include "ei/io/tensor_info.h"

namespace ei {

// The keys and values at the head of a GGUF file. Values stay where they are in the file, which
// must outlive this, and are read when they are asked for. All readers throw Error naming the file,
// the key, what is expected and what is found.
class GgufMetadata {
 public:
  // A scalar, or an array of `count` elements of `type`; a string is a scalar.
  struct Value {
    uint32_t type = 0;
    bool is_array = false;
    uint64_t count = 1;
    std::span<const std::byte> bytes;
  };

  explicit GgufMetadata(std::string where) : where_(std::move(where)) {}
  void add(std::string_view key, const Value& value);  // throws Error when it is already there

  bool has(std::string_view key) const { return values_.contains(key); }
  int64_t integer(std::string_view key, int64_t min, int64_t max) const;
  int64_t integer(std::string_view key, int64_t min, int64_t max, int64_t fallback) const;
  double number(std::string_view key, double min, double max) const;
  double number(std::string_view key, double min, double max, double fallback) const;
  bool boolean(std::string_view key, bool fallback) const;
  std::string_view string(std::string_view key) const;
  std::string_view string(std::string_view key, std::string_view fallback) const;
  // Arrays of at most `max_count` elements. A missing one is empty.
  std::vector<std::string_view> strings(std::string_view key, uint64_t max_count) const;
  std::vector<int64_t> integers(std::string_view key, uint64_t max_count) const;
  std::vector<float> numbers(std::string_view key, uint64_t max_count) const;

  const std::string& where() const { return where_; }

 private:
  const Value& scalar(std::string_view key) const;
  const Value* array(std::string_view key, uint64_t max_count) const;
  [[noreturn]] void wrong_type(std::string_view key, const Value& value,
                               std::string_view expected) const;

  std::string where_;
  std::map<std::string_view, Value, std::less<>> values_;
};

// One GGUF file in memory.
struct GgufPart {
  GgufMetadata metadata;
  TensorMap tensors;
};

// Versions 2 and 3, little-endian; names and metadata point into the file. Throws Error naming
// `where` and the key or tensor unless every count, length and offset is within the file and the
// format's bounds, types are known, names are not used twice, rows are whole blocks, and tensors
// are aligned and do not overlap. At most 65,536 keys and tensors, so that a small file cannot ask
// for much memory.
GgufPart parse_gguf(std::span<const std::byte> file, std::string_view where);

// A model in GGUF: one file, or all parts of one that was split.
class GgufFile {
 public:
  // `path` of a split model is that of its first part, NAME-00001-of-0000N.gguf; the others lie
  // beside it. Throws Error when one is missing, malformed or not the part that its name says.
  explicit GgufFile(const std::filesystem::path& path);

  const GgufMetadata& metadata() const { return parts_.front().metadata; }
  const std::string& path() const { return files_.front().path(); }

  const TensorEntry* find(std::string_view name) const;  // nullptr: there is none
  const std::map<std::string_view, TensorEntry>& entries() const { return entries_; }
  void check_size() const;  // as MappedFile's, of every part
  void let_go(std::span<const std::byte> part) const;

 private:
  void open(const std::filesystem::path& path);

  std::vector<MappedFile> files_;
  std::vector<GgufPart> parts_;
  std::map<std::string_view, TensorEntry> entries_;
};

}  // namespace ei
