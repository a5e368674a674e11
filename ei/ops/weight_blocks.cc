#include "ei/ops/weight_blocks.h"

#include <algorithm>
#include <cmath>

namespace ei {
namespace {

constexpr int64_t kGroup = 32;

float largest(const float* x) {
  float top = 0;
  for (int64_t i = 0; i < kGroup; ++i) top = std::max(top, std::abs(x[i]));
  return top;
}

// Scale and offset by which 32 numbers lose least when they become whole numbers from 0 to 15.
struct Line {
  float scale = 0, offset = 0;

  float number(float x) const {
    return scale > 0 ? std::clamp(std::nearbyint((x + offset) / scale), 0.0f, 15.0f) : 0;
  }
};

// Tries scales around the one that covers all numbers; for each, the line of least squares through
// the whole numbers that it gives. Where `positive`, the offset is not below 0.
Line fit(const float* x, bool positive) {
  const auto [low_at, high_at] = std::minmax_element(x, x + kGroup);
  const float low = positive ? std::min(*low_at, 0.0f) : *low_at, range = *high_at - low;
  Line best{0, -low};
  if (!(range > 0)) return best;
  float sum_x = 0, least = INFINITY;
  for (int64_t i = 0; i < kGroup; ++i) sum_x += x[i];
  for (float levels = 13.5f; levels <= 16; levels += 0.25f) {
    const float inverse = levels / range;
    float sum_q = 0, sum_qq = 0, sum_qx = 0;
    for (int64_t i = 0; i < kGroup; ++i) {
      const float q = std::min(std::floor((x[i] - low) * inverse + 0.5f), 15.0f);
      sum_q += q;
      sum_qq += q * q;
      sum_qx += q * x[i];
    }
    const float n = kGroup, divisor = n * sum_qq - sum_q * sum_q;
    Line line;
    if (divisor > 0) {
      line.scale = (n * sum_qx - sum_q * sum_x) / divisor;
      line.offset = (line.scale * sum_q - sum_x) / n;
    }
    if (positive && (divisor <= 0 || line.offset < 0)) line = {sum_qx / sum_qq, 0};
    if (!(line.scale > 0)) continue;
    float error = 0;
    for (int64_t i = 0; i < kGroup; ++i) {
      const float lost = line.scale * line.number(x[i]) - line.offset - x[i];
      error += lost * lost;
    }
    if (error >= least) continue;
    least = error;
    best = line;
  }
  return best;
}

void put_half(float value, uint8_t* to) {
  const uint16_t bits = to_f16(value);
  std::memcpy(to, &bits, sizeof bits);
}

// n numbers and the n behind them, in the halves of n bytes.
void put_nibbles(const Line& low, const Line& high, const float* x, int64_t n, uint8_t* to) {
  for (int64_t i = 0; i < n; ++i)
    to[i] = static_cast<uint8_t>(static_cast<int>(low.number(x[i])) |
                                 static_cast<int>(high.number(x[i + n])) << 4);
}

void quantize_fp8(const float* x, uint8_t* block) {
  const float scale = largest(x) / 448;
  std::memcpy(block, &scale, sizeof scale);
  for (int64_t i = 0; i < kGroup; ++i)
    block[sizeof scale + i] = to_e4m3(scale > 0 ? x[i] / scale : 0);
}

void quantize_q8_0(const float* x, uint8_t* block) {
  put_half(largest(x) / 127, block);
  const float scale = half_at(block);
  for (int64_t i = 0; i < kGroup; ++i) {
    const float q = scale > 0 ? std::clamp(std::nearbyint(x[i] / scale), -127.0f, 127.0f) : 0;
    block[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(q));
  }
}

void quantize_q4_1(const float* x, uint8_t* block) {
  const Line line = fit(x, false);
  put_half(line.scale, block);
  put_half(-line.offset, block + 2);
  const Line rounded = {half_at(block), -half_at(block + 2)};
  put_nibbles(rounded, rounded, x, 16, block + 4);
}

void quantize_q4_k(const float* x, uint8_t* block) {
  Line lines[8];
  float scale = 0, offset = 0;
  for (int g = 0; g < 8; ++g) {
    lines[g] = fit(x + kGroup * g, true);
    scale = std::max(scale, lines[g].scale);
    offset = std::max(offset, lines[g].offset);
  }
  put_half(scale / 63, block);
  put_half(offset / 63, block + 2);
  const float d = half_at(block), dmin = half_at(block + 2);
  const auto six_bits = [](float value, float unit) {
    return unit > 0 ? static_cast<int>(std::clamp(std::nearbyint(value / unit), 0.0f, 63.0f)) : 0;
  };
  uint8_t* bits = block + 4;
  std::fill_n(bits, 12, uint8_t{0});
  for (int g = 0; g < 8; ++g) {
    const int s = six_bits(lines[g].scale, d), m = six_bits(lines[g].offset, dmin);
    lines[g] = {d * static_cast<float>(s), dmin * static_cast<float>(m)};
    if (g < 4) {
      bits[g] = static_cast<uint8_t>(s);
      bits[g + 4] = static_cast<uint8_t>(m);
    } else {
      bits[g - 4] = static_cast<uint8_t>(bits[g - 4] | s >> 4 << 6);
      bits[g] = static_cast<uint8_t>(bits[g] | m >> 4 << 6);
      bits[g + 4] = static_cast<uint8_t>((s & 15) | (m & 15) << 4);
    }
  }
  for (int pair = 0; pair < 4; ++pair)
    put_nibbles(lines[2 * pair], lines[2 * pair + 1], x + 64 * pair, 32, block + 16 + 32 * pair);
}

}  // namespace

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
  if (format == WeightFormat::kFP8) {
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t* at = block + i / 32 * block_of(format).bytes;
      to[i] = float_at(at) * from_e4m3(at[sizeof(float) + i % 32]);
    }
    return;
  }
  with_integers(format, [&]<WeightFormat kFormat>() {
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

bool can_quantize(WeightFormat format) {
  using enum WeightFormat;
  return format == kBF16 || format == kFP8 || format == kQ8_0 || format == kQ4_1 || format == kQ4_K;
}

void quantize(WeightFormat format, const float* from, int64_t n, void* blocks) {
  using enum WeightFormat;
  auto* to = static_cast<uint8_t*>(blocks);
  if (format == kBF16) {
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t bits = to_bf16(from[i]);
      std::memcpy(to + 2 * i, &bits, sizeof bits);
    }
    return;
  }
  for (int64_t i = 0; i < n; i += block_of(format).weights, to += block_of(format).bytes)
    format == kFP8    ? quantize_fp8(from + i, to)
    : format == kQ8_0 ? quantize_q8_0(from + i, to)
    : format == kQ4_1 ? quantize_q4_1(from + i, to)
                      : quantize_q4_k(from + i, to);
}

}  // namespace ei
