#include <cstddef>
#include <cstdint>

#include "ei/base/error.h"
#include "ei/io/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const ei::GgufPart part = ei::parse_gguf(std::as_bytes(std::span(data, size)), "fuzz.gguf");
    // What was accepted must be readable.
    uint64_t sum = 0;
    for (const auto& [name, tensor] : part.tensors) {
      if (tensor.size() < 0 || (tensor.size() > 0) != !tensor.data.empty()) __builtin_trap();
      for (const std::byte b : tensor.data) sum += static_cast<uint8_t>(b);
    }
    for (const char* key : {"a", "general.architecture", "tokenizer.ggml.tokens"}) {
      const auto read = [&](auto what) {
        try {
          sum += static_cast<uint64_t>(what());
        } catch (const ei::Error&) {
        }
      };
      read([&] { return part.metadata.integer(key, INT64_MIN, INT64_MAX); });
      read([&] { return part.metadata.number(key, 0, 1); });
      read([&] { return part.metadata.boolean(key, false); });
      read([&] { return part.metadata.string(key).size(); });
      read([&] { return part.metadata.strings(key, 1000).size(); });
      read([&] { return part.metadata.integers(key, 1000).size(); });
      read([&] { return part.metadata.numbers(key, 1000).size(); });
    }
    return 0;
  } catch (const ei::Error&) {
    return 0;
  }
}
