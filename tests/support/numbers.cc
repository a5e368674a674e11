#include "tests/support/numbers.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace ei::test {
namespace {

struct Format {
  int digits;  // of the mantissa
  int min_exponent;
};

Format format_of(DType dtype) {
  return dtype == DType::kBF16  ? Format{7, -126}
         : dtype == DType::kF16 ? Format{10, -14}
         : dtype == DType::kFP8 ? Format{3, -6}
                                : Format{23, -126};
}

}  // namespace

double round_to(DType dtype, double value) {
  if (value == 0 || !std::isfinite(value)) return value;
  const auto [digits, min_exponent] = format_of(dtype);
  const int exponent = std::max(std::ilogb(value), min_exponent);
  return std::ldexp(std::nearbyint(std::ldexp(value, digits - exponent)), exponent - digits);
}

namespace {

// Of at most 448.
char to_e4m3(double value) {
  const double magnitude = std::abs(round_to(DType::kFP8, value));
  const int exponent = magnitude == 0 ? -7 : std::max(std::ilogb(magnitude), -7);
  const int bits = exponent < -6 ? static_cast<int>(std::ldexp(magnitude, 9))
                                 : (exponent + 7) << 3 |
                                       (static_cast<int>(std::ldexp(magnitude, 3 - exponent)) - 8);
  return static_cast<char>((std::signbit(value) ? 128 : 0) | bits);
}

double of_e4m3(char byte) {
  const int exponent = byte >> 3 & 15, mantissa = byte & 7;
  if (exponent == 15 && mantissa == 7) return NAN;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(mantissa + 8, exponent - 10);
  return byte < 0 ? -magnitude : magnitude;
}

}  // namespace

void encode(double value, DType dtype, char* to) {
  value = round_to(dtype, value);
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  if (dtype == DType::kF32) {
    std::memcpy(to, &bits, 4);
  } else if (dtype == DType::kBF16) {
    std::memcpy(to, reinterpret_cast<const char*>(&bits) + 2, 2);
  } else {
    const double magnitude = std::abs(value);
    const int exponent = std::max(magnitude == 0 ? -15 : std::ilogb(magnitude), -15);
    const int mantissa = exponent < -14 ? int(std::ldexp(magnitude, 24))
                                        : int(std::ldexp(magnitude, 10 - exponent)) - 1024;
    const auto half = static_cast<uint16_t>((std::signbit(value) ? 0x8000 : 0) |
                                            (exponent + 15) << 10 | mantissa);
    std::memcpy(to, &half, 2);
  }
}

double decode(const char* from, DType dtype) {
  uint32_t bits = 0;
  if (dtype == DType::kF32) {
    std::memcpy(&bits, from, 4);
  } else if (dtype == DType::kBF16) {
    std::memcpy(reinterpret_cast<char*>(&bits) + 2, from, 2);
  } else {
    std::memcpy(&bits, from, 2);
    const int exponent = int(bits >> 10 & 31), mantissa = int(bits & 1023);
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25);
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(bits);
}

double bf16_down(double value) {
  if (value == 0) return value;
  const int shift = 7 - std::max(std::ilogb(value), -126);
  return std::ldexp(std::floor(std::ldexp(value, shift)), -shift);
}

void encode_row(const double* values, int64_t n, DType dtype, RowOf what, char* to,
                float* scale_at) {
  if (dtype == DType::kFP8) {
    double largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(values[i]));
    const bool is_key = what == RowOf::kKey;
    double scale = 0x1p-100;
    while (largest > (is_key ? 127 : 448) * scale) scale *= is_key ? 2 : 16;
    *scale_at = static_cast<float>(scale);
    for (int64_t i = 0; i < n; ++i)
      to[i] = is_key ? static_cast<char>(std::nearbyint(values[i] / scale))
                     : to_e4m3(values[i] / scale);
    return;
  }
  if (dtype != DType::kQ8) {
    for (int64_t i = 0; i < n; ++i) encode(values[i], dtype, to + i * dtype_bytes(dtype));
    return;
  }
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(values[i]));
  const auto scale = static_cast<float>(largest / 127);
  std::memcpy(to, &scale, 4);
  for (int64_t i = 0; i < n; ++i) {
    const double whole = largest == 0 ? 0 : std::nearbyint(values[i] * 127 / largest);
    to[4 + i] = static_cast<char>(whole);
  }
}

void decode_row(const char* from, int64_t n, DType dtype, RowOf what, double* to, float row_scale) {
  if (dtype == DType::kFP8) {
    for (int64_t i = 0; i < n; ++i)
      to[i] =
          row_scale * (what == RowOf::kKey ? static_cast<signed char>(from[i]) : of_e4m3(from[i]));
    return;
  }
  if (dtype != DType::kQ8) {
    for (int64_t i = 0; i < n; ++i) to[i] = decode(from + i * dtype_bytes(dtype), dtype);
    return;
  }
  float scale = 0;
  std::memcpy(&scale, from, 4);
  for (int64_t i = 0; i < n; ++i)
    to[i] = scale * static_cast<float>(static_cast<signed char>(from[4 + i]));
}

void round_rows(Matrix& rows, DType dtype, RowOf what) {
  std::vector<char> row(size_t(4 + 4 * rows.dim(1)));
  for (int64_t r = 0; r < rows.dim(0); ++r) {
    float scale = 0;
    encode_row(rows[r].data, rows.dim(1), dtype, what, row.data(), &scale);
    decode_row(row.data(), rows.dim(1), dtype, what, rows[r].data, scale);
  }
}

}  // namespace ei::test
