#include "ei/model/quantized_tensors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "ei/base/fail.h"
#include "ei/ops/weight_blocks.h"

namespace ei {
namespace {

constexpr int64_t kBlock = 32;      // of Q4_0, Q5_0, INT8 and FP8
constexpr int64_t kFp8Block = 128;  // rows and columns that share a scale

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A tensor with its name, for messages.
struct Tensor {
  const TensorInfo* info = nullptr;
  std::string where;

  explicit operator bool() const { return info != nullptr; }
  const std::vector<int64_t>& shape() const { return info->shape; }
  // Throws Error unless it is of this type and shape.
  void expect(std::string_view dtype, const std::vector<int64_t>& shape) const {
    require(info->dtype == dtype && info->shape == shape, "{} is {} [{}], expected {} [{}]", where,
            info->dtype, fmt::join(info->shape, ", "), dtype, fmt::join(shape, ", "));
  }
  uint32_t word(int64_t i) const {
    uint32_t value;
    std::memcpy(&value, info->data.data() + 4 * i, sizeof value);
    return value;
  }
};

// F16, BF16 or F32, all finite.
std::vector<float> numbers(const Tensor& tensor) {
  const auto format = weight_format(tensor.info->dtype);
  require(format.has_value() && !is_quantized(*format), "{} is {}, expected F16, BF16 or F32",
          tensor.where, tensor.info->dtype);
  std::vector<float> values(static_cast<size_t>(tensor.info->size()));
  dequantize(*format, tensor.info->data.data(), std::ssize(values), values.data());
  for (const float value : values)
    require(std::isfinite(value), "{} has a value that is not finite", tensor.where);
  return values;
}

class Module {
 public:
  Module(const FindTensor& find, const std::string& name, int64_t rows, int64_t cols)
      : rows(rows), cols(cols), find_(find), name_(name) {}

  Tensor find(std::string_view suffix) const {
    const TensorEntry* entry = find_(suffix);
    if (entry == nullptr) return {};
    return {entry->tensor, fmt::format("{}: tensor {}{}", *entry->file, name_, suffix)};
  }
  Tensor at(std::string_view suffix, const Tensor& beside) const {
    Tensor tensor = find(suffix);
    require(bool(tensor), "{} has no {}{} beside it", beside.where, name_, suffix);
    return tensor;
  }

  const int64_t rows, cols;

 private:
  const FindTensor& find_;
  const std::string& name_;
};

// What makes values of whole numbers: (number - zero point) * scale.
struct Integers {
  Tensor tensor;
  int64_t rows = 0, cols = 0, group = 0;
  int bits = 4;
  std::vector<float> scales;  // [row, group] or
  bool groups_first = false;  // [group, row]

  float scale(int64_t row, int64_t g) const {
    return scales[static_cast<size_t>(groups_first ? g * rows + row : row * (cols / group) + g)];
  }
  // Divides the columns into as many groups as there are.
  void set_groups(int64_t n) {
    require(n > 0 && cols % n == 0 && cols / n % kBlock == 0,
            "{}: {} scales for {} columns; groups of whole blocks of {} are supported",
            tensor.where, n, cols, kBlock);
    group = cols / n;
  }
};

// Columns by their groups, those of a group as they come; empty if they are so already.
std::vector<int32_t> order_of(const Tensor& g_idx, int64_t cols, int64_t group) {
  g_idx.expect("I32", {cols});
  std::vector<std::vector<int32_t>> members(static_cast<size_t>(cols / group));
  for (int64_t k = 0; k < cols; ++k) {
    const auto g = static_cast<int32_t>(g_idx.word(k));
    require(g >= 0 && g < std::ssize(members), "{}[{}] is {}, there are {} groups", g_idx.where, k,
            g, members.size());
    members[static_cast<size_t>(g)].push_back(static_cast<int32_t>(k));
  }
  std::vector<int32_t> order;
  for (const auto& columns : members) {
    require(std::ssize(columns) == group, "{}: a group has {} columns, expected {}", g_idx.where,
            columns.size(), group);
    order.insert(order.end(), columns.begin(), columns.end());
  }
  if (std::is_sorted(order.begin(), order.end())) order.clear();
  return order;
}

// One block of numbers q, |q| <= 128 in all.
void write_block(WeightFormat format, float scale, const int8_t* q, char* to) {
  if (format == WeightFormat::kINT8) {
    std::memcpy(to, &scale, sizeof scale);
    std::memcpy(to + sizeof scale, q, kBlock);
    return;
  }
  const uint16_t half = to_f16(scale);
  std::memcpy(to, &half, sizeof half);
  const bool five = format == WeightFormat::kQ5_0;
  const int zero = five ? 16 : 8;
  uint32_t fifth = 0;
  auto* nibbles = reinterpret_cast<uint8_t*>(to) + (five ? 6 : 2);
  for (int i = 0; i < 16; ++i) {
    const unsigned low = static_cast<unsigned>(q[i] + zero);
    const unsigned high = static_cast<unsigned>(q[i + 16] + zero);
    nibbles[i] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
    fifth |= (low >> 4) << i | (high >> 4) << (i + 16);
  }
  if (five) std::memcpy(to + 2, &fifth, sizeof fifth);
}

// By number(row, column) and zero(row, group), none of which are negative.
template <class Number, class Zero>
QuantizedTensor repack(Integers from, const Number& number, const Zero& zero,
                       std::vector<int32_t> order = {}) {
  bool has_zeros = false, halves = true;
  for (int64_t row = 0; row < from.rows; ++row)
    for (int64_t g = 0; g < from.cols / from.group; ++g) {
      has_zeros |= zero(row, g) != (1 << from.bits) / 2;
      halves &= from_f16(to_f16(from.scale(row, g))) == from.scale(row, g);
    }
  require(from.bits == 4 || !has_zeros,
          "{}: numbers of 8 bits with zero points are not supported; those without are",
          from.tensor.where);
  const WeightFormat format = from.bits == 8 || !halves ? WeightFormat::kINT8
                              : has_zeros               ? WeightFormat::kQ5_0
                                                        : WeightFormat::kQ4_0;
  QuantizedTensor tensor{from.tensor.info->data.data(), format, order, {}};
  tensor.write = [from = std::move(from), number, zero, order = std::move(order), format](
                     int64_t first, int64_t last, char* to) {
    const int64_t n = last - first;
    std::vector<int8_t> q(static_cast<size_t>(n * from.cols));
    for (int64_t j = 0; j < from.cols; ++j) {  // a column of rows, as most layouts have them
      const int64_t col = order.empty() ? j : order[static_cast<size_t>(j)], g = j / from.group;
      for (int64_t i = 0; i < n; ++i)
        q[static_cast<size_t>(i * from.cols + j)] =
            static_cast<int8_t>(number(first + i, col) - zero(first + i, g));
    }
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < from.cols; j += kBlock, to += block_of(format).bytes)
        write_block(format, from.scale(first + i, j / from.group),
                    &q[static_cast<size_t>(i * from.cols + j)], to);
  };
  return tensor;
}

// Numbers of `bits` side by side in words of 32 bits, the first in the lowest.
struct Packed {
  Tensor words;
  int bits;
  int64_t per_word() const { return 32 / bits; }
  int at(int64_t word, int64_t place) const {
    return static_cast<int>(words.word(word) >> place * bits & ((1u << bits) - 1));
  }
};

// How many bits make `words` hold `numbers`: 4 or 8.
int bits_of(const Tensor& tensor, size_t dim, int64_t numbers) {
  const int64_t words = tensor.shape().size() == 2 ? tensor.shape()[dim] : 0;
  require(words * 8 == numbers || words * 4 == numbers,
          "{} has shape [{}]: expected numbers of 4 or 8 bits in words of 32, {} of them in "
          "dimension {}",
          tensor.where, fmt::join(tensor.shape(), ", "), numbers, dim);
  return words * 8 == numbers ? 4 : 8;
}

// Scales [group, row] of AWQ and GPTQ.
void take_scales(const Tensor& scales, Integers& to) {
  to.set_groups(scales.shape().empty() ? 0 : scales.shape()[0]);
  scales.expect(scales.info->dtype, {to.cols / to.group, to.rows});
  to.scales = numbers(scales);
  to.groups_first = true;
}

// Words [in / 8, out], each of eight inputs; zero points [group, out / 8], less 1 in most files.
QuantizedTensor gptq(const Module& module, const Tensor& weight, bool zero_less_one) {
  const int64_t rows = module.rows, cols = module.cols;
  Integers to{.tensor = weight, .rows = rows, .cols = cols, .bits = bits_of(weight, 0, cols)};
  const Packed q{weight, to.bits}, z{module.at(".qzeros", weight), to.bits};
  weight.expect("I32", {cols / q.per_word(), rows});
  take_scales(module.at(".scales", weight), to);
  const int64_t width = ceil_div(rows, z.per_word());
  z.words.expect("I32", {cols / to.group, width});
  std::vector<int32_t> order;
  if (const Tensor g_idx = module.find(".g_idx")) order = order_of(g_idx, cols, to.group);
  return repack(
      std::move(to),
      [q, rows](int64_t row, int64_t col) {
        return q.at(col / q.per_word() * rows + row, col % q.per_word());
      },
      [z, width, add = zero_less_one ? 1 : 0](int64_t row, int64_t g) {
        return z.at(g * width + row / z.per_word(), row % z.per_word()) + add;
      },
      std::move(order));
}

// Words [in, out / 8], each of eight outputs in the order 0 2 4 6 1 3 5 7; so are zero points
// [group, out / 8].
QuantizedTensor awq(const Module& module, const Tensor& weight) {
  const int64_t width = ceil_div(module.rows, 8);
  Integers to{.tensor = weight, .rows = module.rows, .cols = module.cols};
  weight.expect("I32", {to.cols, width});
  take_scales(module.at(".scales", weight), to);
  const Tensor zeros = module.at(".qzeros", weight);
  zeros.expect("I32", {to.cols / to.group, width});
  const auto read = [width](const Tensor& words) {
    return [q = Packed{words, 4}, width](int64_t row, int64_t line) {
      constexpr std::array<int8_t, 8> kPlace = {0, 4, 1, 5, 2, 6, 3, 7};
      return q.at(line * width + row / 8, kPlace[static_cast<size_t>(row % 8)]);
    };
  };
  return repack(std::move(to), read(weight), read(zeros));
}

// One scale, [1], [rows] or [rows, 1]: one a row; [rows, groups].
void take_row_scales(const Tensor& scale, Integers& to) {
  const std::vector<int64_t>& shape = scale.shape();
  const int64_t size = scale.info->size();
  to.set_groups(size == 1 ? 1 : size / to.rows);
  require(size == 1 || (shape[0] == to.rows && size % to.rows == 0),
          "{} has shape [{}], expected one scale, or one or several for each of {} rows",
          scale.where, fmt::join(shape, ", "), to.rows);
  to.scales = numbers(scale);
  if (size == 1) to.scales.assign(static_cast<size_t>(to.rows), to.scales[0]);
}

// Words [out, in / 8], each of eight inputs, with 8 added; so are zero points [out / 8, group].
QuantizedTensor pack_quantized(const Module& module, const Tensor& weight) {
  const int64_t rows = module.rows, cols = module.cols;
  Integers to{.tensor = weight, .rows = rows, .cols = cols, .bits = bits_of(weight, 1, cols)};
  const Packed q{weight, to.bits}, z{module.find(".weight_zero_point"), to.bits};
  weight.expect("I32", {rows, cols / q.per_word()});
  take_row_scales(module.at(".weight_scale", weight), to);
  const int64_t n_groups = cols / to.group, middle = (1 << to.bits) / 2;
  if (z.words) z.words.expect("I32", {ceil_div(rows, z.per_word()), n_groups});
  std::vector<int32_t> order;
  if (const Tensor g_idx = module.find(".weight_g_idx")) order = order_of(g_idx, cols, to.group);
  return repack(
      std::move(to),
      [q, width = cols / q.per_word()](int64_t row, int64_t col) {
        return q.at(row * width + col / q.per_word(), col % q.per_word());
      },
      [z, n_groups, middle](int64_t row, int64_t g) {
        return z.words ? z.at(row / z.per_word() * n_groups + g, row % z.per_word())
                       : static_cast<int>(middle);
      },
      std::move(order));
}

// Bytes [out, in].
QuantizedTensor int_quantized(const Module& module, const Tensor& weight) {
  Integers to{.tensor = weight, .rows = module.rows, .cols = module.cols, .bits = 8};
  weight.expect("I8", {to.rows, to.cols});
  take_row_scales(module.at(".weight_scale", weight), to);
  if (const Tensor zeros = module.find(".weight_zero_point"))
    require(std::ranges::all_of(zeros.info->data, [](std::byte b) { return b == std::byte{0}; }),
            "{}: numbers of 8 bits with zero points are not supported; those without are",
            zeros.where);
  return repack(
      std::move(to),
      [weight, cols = module.cols](int64_t row, int64_t col) {
        return static_cast<int8_t>(weight.info->data[static_cast<size_t>(row * cols + col)]) + 128;
      },
      [](int64_t, int64_t) { return 128; });
}

// Bytes [out, in].
QuantizedTensor fp8(const Module& module, const Tensor& weight) {
  const int64_t rows = module.rows, cols = module.cols;
  weight.expect("F8_E4M3", {rows, cols});
  require(cols % kBlock == 0, "{}: rows of {} numbers, expected whole blocks of {}", weight.where,
          cols, kBlock);
  Tensor scale = module.find(".weight_scale_inv");
  if (!scale) scale = module.at(".weight_scale", weight);
  const std::vector<int64_t>& shape = scale.shape();
  const std::vector blocks = {ceil_div(rows, kFp8Block), ceil_div(cols, kFp8Block)};
  // Rows and columns that share a scale.
  int64_t high = rows, wide = cols;
  if (shape == blocks) {
    high = wide = kFp8Block;
  } else if (shape == std::vector{rows} || shape == std::vector<int64_t>{rows, 1}) {
    high = 1;
  } else {
    require(scale.info->size() == 1,
            "{} has shape [{}], expected one scale, one for each of {} rows, or [{}]: one for {} "
            "rows by {} columns",
            scale.where, fmt::join(shape, ", "), rows, fmt::join(blocks, ", "), kFp8Block,
            kFp8Block);
  }
  const auto write = [=, scales = numbers(scale), per_row = ceil_div(cols, wide)](
                         int64_t first, int64_t last, char* to) {
    for (int64_t row = first; row < last; ++row)
      for (int64_t col = 0; col < cols; col += kBlock, to += block_of(WeightFormat::kFP8).bytes) {
        const auto at = static_cast<size_t>(row / high * per_row + col / wide);
        const std::byte* bytes = weight.info->data.data() + row * cols + col;
        std::memcpy(to, &scales[at], sizeof(float));
        std::memcpy(to + sizeof(float), bytes, kBlock);
        require(std::none_of(bytes, bytes + kBlock,
                             [](std::byte b) { return (b & std::byte{0x7F}) == std::byte{0x7F}; }),
                "{} has a value that is not a number, in row {}", weight.where, row);
      }
  };
  return {weight.info->data.data(), WeightFormat::kFP8, {}, write};
}

}  // namespace

std::optional<QuantizedTensor> find_quantized(const Quantization& scheme, const FindTensor& find,
                                              const std::string& name, int64_t rows, int64_t cols) {
  const Module module(find, name, rows, cols);
  using enum Quantization::Method;
  switch (scheme.method) {
    case kAwq:
      if (const Tensor weight = module.find(".qweight")) return awq(module, weight);
      break;
    case kGptq:
      if (const Tensor weight = module.find(".qweight"))
        return gptq(module, weight, scheme.zero_less_one);
      break;
    case kCompressedTensors:
      if (const Tensor weight = module.find(".weight_packed"))
        return pack_quantized(module, weight);
      if (const Tensor weight = module.find(".weight"); weight && weight.info->dtype == "I8")
        return int_quantized(module, weight);
      [[fallthrough]];
    case kFp8:
      if (const Tensor weight = module.find(".weight"); weight && weight.info->dtype == "F8_E4M3")
        return fp8(module, weight);
      break;
    case kNone:
      break;
  }
  return std::nullopt;
}

}  // namespace ei
