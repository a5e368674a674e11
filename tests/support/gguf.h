#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ei::test {

// Writes GGUF, version 3, by the format's description. Numbers of types are the format's.
class GgufWriter {
 public:
  void u32(std::string_view key, uint32_t value);
  void f32(std::string_view key, float value);
  void boolean(std::string_view key, bool value);
  void string(std::string_view key, std::string_view value);
  void strings(std::string_view key, const std::vector<std::string>& values);
  void i32s(std::string_view key, const std::vector<int32_t>& values);
  void f32s(std::string_view key, const std::vector<float>& values);
  // A value of any type and bytes, right or wrong.
  void raw(std::string_view key, uint32_t type, std::string_view bytes);
  // `dims` as the file has them: [inner, ..., outer].
  void tensor(std::string_view name, uint32_t type, const std::vector<uint64_t>& dims,
              std::string_view bytes);

  std::string bytes(uint64_t alignment = 32) const;

 private:
  std::string keys_;
  struct Tensor {
    std::string head, bytes;
  };
  std::vector<Tensor> list_;
  uint64_t n_keys_ = 0;
};

}  // namespace ei::test
