#include "tests/support/gguf.h"

#include <cstring>

namespace ei::test {
namespace {

template <class T>
std::string bytes_of(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}
std::string string_of(std::string_view text) {
  return bytes_of<uint64_t>(text.size()) + std::string(text);
}
template <class T>
std::string array_of(uint32_t type, const std::vector<T>& values) {
  std::string bytes = bytes_of(type) + bytes_of<uint64_t>(values.size());
  for (const T& value : values) {
    if constexpr (std::is_same_v<T, std::string>) {
      bytes += string_of(value);
    } else {
      bytes += bytes_of(value);
    }
  }
  return bytes;
}

}  // namespace

void GgufWriter::raw(std::string_view key, uint32_t type, std::string_view bytes) {
  keys_ += string_of(key) + bytes_of(type) + std::string(bytes);
  ++n_keys_;
}
void GgufWriter::u32(std::string_view key, uint32_t value) { raw(key, 4, bytes_of(value)); }
void GgufWriter::f32(std::string_view key, float value) { raw(key, 6, bytes_of(value)); }
void GgufWriter::boolean(std::string_view key, bool value) { raw(key, 7, bytes_of(value)); }
void GgufWriter::string(std::string_view key, std::string_view value) {
  raw(key, 8, string_of(value));
}
void GgufWriter::strings(std::string_view key, const std::vector<std::string>& values) {
  raw(key, 9, array_of(8, values));
}
void GgufWriter::i32s(std::string_view key, const std::vector<int32_t>& values) {
  raw(key, 9, array_of(5, values));
}
void GgufWriter::f32s(std::string_view key, const std::vector<float>& values) {
  raw(key, 9, array_of(6, values));
}

void GgufWriter::tensor(std::string_view name, uint32_t type, const std::vector<uint64_t>& dims,
                        std::string_view bytes) {
  std::string head = string_of(name) + bytes_of(static_cast<uint32_t>(dims.size()));
  for (const uint64_t dim : dims) head += bytes_of(dim);
  list_.push_back({head + bytes_of(type), std::string(bytes)});
}

std::string GgufWriter::bytes(uint64_t alignment) const {
  const auto pad = [&](std::string& to) {
    to.resize((to.size() + alignment - 1) / alignment * alignment);
  };
  std::string file =
      "GGUF" + bytes_of(uint32_t{3}) + bytes_of<uint64_t>(list_.size()) + bytes_of(n_keys_) + keys_;
  std::string data;
  for (const Tensor& tensor : list_) {
    pad(data);
    file += tensor.head + bytes_of<uint64_t>(data.size());
    data += tensor.bytes;
  }
  pad(file);
  return file + data;
}

}  // namespace ei::test
