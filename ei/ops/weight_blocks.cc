#include "ei/ops/weight_blocks.h"

#include <algorithm>

namespace ei {

void dequantize(WeightFormat format, const void* blocks, int64_t n, float* to) {
  if (format == WeightFormat::kF32) {
    std::memcpy(to, blocks, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  const auto* block = static_cast<const uint8_t*>(blocks);
  if (!is_quantized(format)) {
    for (int64_t i = 0; i < n; ++i) {
      uint16_t bits;
      std::memcpy(&bits, block + 2 * i, sizeof bits);
      to[i] = format == WeightFormat::kBF16 ? from_bf16(bits) : from_f16(bits);
    }
    return;
  }
  with_quantized(format, [&]<WeightFormat kFormat>() {
    constexpr int64_t kSize = block_of(kFormat).weights, kGroup = group_of(kFormat);
    int16_t q[kSize];
    float scale[kSize / kGroup], offset[kSize / kGroup];
    for (int64_t i = 0; i < n; i += kSize, block += block_of(kFormat).bytes) {
      unpack_numbers<kFormat>(block, q);
      unpack_scales<kFormat>(block, scale, offset);
      for (int64_t k = 0; k < kSize; ++k) {
        const float product = scale[k / kGroup] * static_cast<float>(q[k]);
        to[i + k] = has_offset(kFormat) ? product - offset[k / kGroup] : product;
      }
    }
  });
}

}  // namespace ei
