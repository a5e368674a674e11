#include "ei/base/error.h"
#include "ei/text/byte_level.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) try {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = ei::make_byte_level(ei::parse_json(bytes, "fuzz"), {}, "fuzz");
  tokenizer->decode(tokenizer->encode("kalo e\u0301 <left> words\n\n 123 \U0001F600", true), true);
  return 0;
} catch (const ei::Error&) {
  return 0;
}
