#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "ei/base/error.h"
#include "ei/model/config.h"

// config.json, and the RoPE frequencies that follow from it; generation_config.json.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  ei::Json json;
  try {
    json = ei::parse_json(text, "fuzz.json");
    ei::parse_generation_config(json, "fuzz.json");
  } catch (const ei::Error&) {
  }
  try {
    const ei::ModelConfig config = ei::parse_config(json, "fuzz.json");
    const ei::RopeFrequencies rope = ei::rope_frequencies(config.rope, config.head_dim);
    for (const float f : rope.inv_freq)
      if (!std::isfinite(f) || f < 0) __builtin_trap();
    if (!std::isfinite(rope.scale) || rope.scale <= 0) __builtin_trap();
  } catch (const ei::Error&) {
  }
  return 0;
}
