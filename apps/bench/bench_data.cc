#include "apps/bench/bench_data.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "ei/ops/weight_blocks.h"

namespace ei::bench {
namespace {

constexpr int64_t kTableRows = 1024;
constexpr int64_t kAppend = 2048;
constexpr int64_t kQuantizedRows = 64;

}  // namespace

uint64_t BenchData::random() {  // xorshift64
  state_ ^= state_ << 13;
  state_ ^= state_ >> 7;
  return state_ ^= state_ << 17;
}

float BenchData::number() { return static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f; }

Weight BenchData::on_host(int64_t rows, int64_t cols, WeightFormat format) {
  const int64_t stride = row_bytes(format, cols);
  std::vector<char>& bytes = weights_.emplace_back(static_cast<size_t>(rows * stride));
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    char* to = bytes.data() + r * stride;
    if (is_quantized(format) && r >= kQuantizedRows) {
      std::memcpy(to, to - kQuantizedRows * stride, static_cast<size_t>(stride));
      continue;
    }
    for (float& x : row) x = number();
    if (is_quantized(format)) {
      quantize(format, row.data(), cols, to);
    } else {
      for (int64_t c = 0; c < cols; ++c) {  // the upper halves
        const auto half = static_cast<uint16_t>(std::bit_cast<uint32_t>(row[size_t(c)]) >> 16);
        std::memcpy(to + 2 * c, &half, sizeof half);
      }
    }
  }
  return {.data = bytes.data(), .format = format, .rows = rows, .cols = cols};
}

// Activations are opaque: they come out of an op, here rows of a random table in random order.
ActArray BenchData::act(int64_t rows, int64_t cols) {
  ActArray out(backend_, rows, cols);
  std::vector<int32_t> rows_of_table(static_cast<size_t>(rows));
  const int64_t table_rows = std::min(rows, kTableRows);
  for (int32_t& r : rows_of_table)
    r = static_cast<int32_t>(random() % static_cast<uint64_t>(table_rows));
  const DeviceArray<int32_t, 1> tokens(backend_, rows_of_table);
  backend_.run(Embed{.tokens = tokens.view(), .table = table(table_rows, cols), .out = out.act()});
  return out;
}

KvCache BenchData::cache(PagePool& pool, const KvShape& shape, int64_t n_tokens) {
  KvCache cache(backend_, pool, shape);
  const int64_t width = shape.n_kv_heads * shape.layout.head_dim;
  const ActArray k = act(std::min(kAppend, n_tokens), width);
  const ActArray v = act(std::min(kAppend, n_tokens), width);
  for (int64_t at = 0; at < n_tokens; at += kAppend) {
    const int64_t n = std::min(kAppend, n_tokens - at);
    cache.reserve(n);
    for (int layer = 0; layer < shape.n_layers; ++layer)
      cache.append(layer, k.act().slice(0, n), v.act().slice(0, n));
    cache.advance(n);
  }
  return cache;
}

}  // namespace ei::bench
