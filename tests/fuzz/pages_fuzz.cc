#include <cstddef>
#include <cstdint>

#include "ei/base/error.h"
#include "ei/cache/page_image.h"
#include "ei/engine/session_file.h"

// Of a saved session, and of each of its pages, also as somebody would craft them who knows the
// checksum.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto parse = [](std::span<const std::byte> image) {
    if (image.size() < sizeof(uint64_t)) return;
    std::vector<std::byte> sealed(image.begin(), image.end());
    ei::seal(sealed);
    try {
      const ei::PageImage page = ei::parse_image(sealed, "fuzz");
      // What was accepted must be readable.
      volatile int sum = 0;
      for (const std::byte b : page.pages) sum = sum + static_cast<int>(b);
      if (page.asked < 0) __builtin_trap();
    } catch (const ei::Error&) {
    }
  };
  parse(bytes);
  try {
    const ei::SessionFile session = ei::parse_session(bytes, "fuzz");
    for (const auto& image : session.images) parse(image);
  } catch (const ei::Error&) {
  }
  return 0;
}
