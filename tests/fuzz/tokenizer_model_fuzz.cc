#include "ei/base/error.h"
#include "ei/text/sentencepiece.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) try {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = ei::make_sentencepiece(bytes, {}, "fuzz");
  tokenizer->decode(tokenizer->encode("  kalo A\uFB01 <s> abc\u00A0 mi<sep>\n \U0001F600", true),
                    true);
  return 0;
} catch (const ei::Error&) {
  return 0;
}
