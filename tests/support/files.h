#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "ei/base/error.h"
#include "ei/io/json.h"

namespace ei::test {

// The model that the project ships.
inline const std::string kNeedle = EI_SOURCE_DIR "/models/needle-8m";

// A new directory that goes away with this object.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

void write_file(const std::filesystem::path& path, std::string_view bytes);

// A safetensors file of any header and data, right or wrong.
std::string safetensors_bytes(std::string_view header, std::string_view data);
inline std::string safetensors_bytes(const Json& header, std::string_view data) {
  return safetensors_bytes(std::string_view(header.dump()), data);
}
// {"dtype": .., "shape": .., "data_offsets": [begin, end]}
Json tensor_json(std::string_view dtype, const std::vector<int64_t>& shape, uint64_t begin,
                 uint64_t end);

// What `action` throws as Error; empty when it throws nothing.
template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace ei::test
