// What policies choose of queries and keys in a file, for policies_test.py to compare with plain
// statements of their rules: choices POLICIES N HEADS KV_HEADS HEAD_DIM LAYERS HIDDEN FILE.
// POLICIES are PREFILL+DECODE with settings, as evaluations take them. FILE has floats: of each
// layer q [N, HEADS * HEAD_DIM], k and v [N, KV_HEADS * HEAD_DIM], RoPE applied; the first of a
// value is the position; what they are projected from, [N, HIDDEN]; and the columns of the output
// matrix, [HEADS * HEAD_DIM, HIDDEN]. The directions of a sketch are those of these keys. Of a
// policy whose prompt votes by being repeated, the last `window` tokens are what is read to repeat
// those before. Prints {"blocks": [layer][KV head][segment] past blocks or null for all, "rows":
// [layer][KV head]}.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/eval/policies.h"
#include "ei/base/fail.h"
#include "ei/decode/compress.h"
#include "ei/decode/expected.h"
#include "ei/decode/output_norms.h"
#include "ei/engine/make_backend.h"
#include "ei/prefill/plan.h"

namespace ei::test {
namespace {

using Json = nlohmann::json;

struct Tokens {
  int64_t n, n_heads, n_kv_heads, d, n_layers, n_hidden;
  std::vector<float> values;

  int64_t layer_size() const {
    return n * d * (n_heads + 2 * n_kv_heads) + (n + n_heads * d) * n_hidden;
  }
  Act rows(int layer, int64_t at, int64_t heads) {
    return {values.data() + layer * layer_size() + at * n * d, n, heads * d, sizeof(float)};
  }
  Act q(int layer) { return rows(layer, 0, n_heads); }
  Act k(int layer) { return rows(layer, n_heads, n_kv_heads); }
  Act v(int layer) { return rows(layer, n_heads + n_kv_heads, n_kv_heads); }
  Act hidden(int layer) {
    return {values.data() + layer * layer_size() + n * d * (n_heads + 2 * n_kv_heads), n, n_hidden,
            sizeof(float)};
  }
  Act output_columns(int layer, int64_t head) {
    return {static_cast<float*>(hidden(layer).data) + (n + head * d) * n_hidden, d, n_hidden,
            sizeof(float)};
  }
};

// Keys as measure_sketch() takes them.
std::vector<float> keys_of(Tokens& tokens) {
  std::vector<float> keys;
  for (int l = 0; l < tokens.n_layers; ++l)
    for (int64_t h = 0; h < tokens.n_kv_heads; ++h)
      for (int64_t i = 0; i < tokens.n; ++i) {
        const float* row = static_cast<const float*>(tokens.k(l).slice(i, 1).data) + h * tokens.d;
        keys.insert(keys.end(), row, row + tokens.d);
      }
  return keys;
}

void append(KvCache& cache, QueryWindow& window, Tokens& tokens, int64_t n) {
  cache.reserve(n);
  for (int l = 0; l < tokens.n_layers; ++l) {
    const int64_t at = cache.n_tokens();
    cache.append(l, tokens.k(l).slice(at, n), tokens.v(l).slice(at, n));
    window.save(l, tokens.q(l).slice(at, n), at);
  }
}

Json blocks_of(const Selection& selection, int64_t head) {
  Json out = Json::array();
  for (int64_t s = 0; s < selection.count.dim(1); ++s) {
    const int32_t n = selection.count[head][s];
    if (n == kAllBlocks) {
      out.push_back(nullptr);
    } else {
      const int32_t* first = selection.index[head][s].data;
      out.push_back(std::vector<int32_t>(first, first + n));
    }
  }
  return out;
}

// The positions of a head's rows, by the marks in its values.
Json positions(const KvLayer& kv, int64_t head) {
  Json out = Json::array();
  for (int64_t r = 0; r < kv.n_rows[head]; ++r) {
    const auto* page = static_cast<const float*>(kv.pages[head][r / kv.layout.rows]);
    out.push_back(
        std::lround(page[(kv.layout.first_value() + r % kv.layout.rows) * kv.layout.head_dim]));
  }
  return out;
}

Json choose(const std::string& text, Tokens& tokens) {
  CLI::App app;
  const Device device = Device::kCpu;
  const cli::PolicyOptions options(app, device, /*names=*/false);
  const cli::Policies policies = eval::parse_policies(text, options).policies;
  const PrefillPolicy& read = policies.prefill;
  const DecodePolicy& decode = policies.decode;
  const auto backend = make_backend({.device = device, .threads = 1, .math = Math::kF32});
  ModelConfig config;
  config.n_layers = static_cast<int>(tokens.n_layers);
  config.n_heads = tokens.n_heads;
  config.n_kv_heads = tokens.n_kv_heads;
  config.head_dim = tokens.d;

  const int64_t block = read.estimate == Estimate::kBounds ? read.block : 0;
  const KvShape shape = {
      .n_layers = tokens.n_layers,
      .n_kv_heads = tokens.n_kv_heads,
      .layout = {.dtype = DType::kF32, .head_dim = tokens.d, .rows = read.segment, .block = block},
      .max_tokens = tokens.n};
  PagePool pool(*backend, shape.layout.bytes());
  KvCache cache(*backend, pool, shape);
  QueryWindow window(*backend, tokens.n_layers, decode.window, tokens.n_heads * tokens.d);
  PrefillPlan plan(*backend, read,
                   {.n_layers = tokens.n_layers,
                    .n_heads = tokens.n_heads,
                    .n_kv_heads = tokens.n_kv_heads,
                    .head_dim = tokens.d,
                    .max_tokens = tokens.n,
                    .page = read.segment,
                    .chunk = 3 * read.segment});
  const Sketch::Shape of_sketch = {tokens.n_layers, tokens.n_kv_heads, tokens.d};
  const Sketch sketch(*backend, of_sketch, measure_sketch(of_sketch, keys_of(tokens)));
  plan.use(&sketch);
  plan.begin(tokens.n, 0);

  Json blocks(static_cast<size_t>(tokens.n_layers),
              Json(static_cast<size_t>(tokens.n_kv_heads), Json::array()));
  const int64_t n_repeating = decode.voter == Voter::kRepeat ? decode.window : 0;
  while (cache.n_tokens() < tokens.n) {
    const Chunk chunk = plan.next(cache.n_tokens(), INT64_MAX);
    append(cache, window, tokens, chunk.size);
    for (int l = 0; l < tokens.n_layers; ++l) {
      const Selection selection =
          plan.select(l, chunk, tokens.q(l).slice(chunk.begin, chunk.size), cache.layer(l));
      for (int64_t h = 0; h < tokens.n_kv_heads; ++h)
        for (Json& segment : blocks_of(selection, h))
          blocks[static_cast<size_t>(l)][static_cast<size_t>(h)].push_back(std::move(segment));
    }
    cache.advance(chunk.size);
  }
  Json out = {{"blocks", std::move(blocks)}, {"rows", Json::array()}};
  if (decode.is_full()) return out;

  const float scale = 1 / std::sqrt(static_cast<float>(tokens.d));
  Compressor::Votes votes;
  if (decode.voter == Voter::kExpected)
    votes = expected_votes(*backend, config, decode, cache, window);
  if (decode.voter == Voter::kRepeat)
    votes = [&](int l, const View<float, 2>& to) {
      std::vector<float> inverse_norms;
      DeviceArray<float, 2> norms;
      if (decode.by_output) {
        for (int64_t i = tokens.n - n_repeating; i < tokens.n; ++i) {
          const auto* h = static_cast<const float*>(tokens.hidden(l).slice(i, 1).data);
          inverse_norms.push_back(static_cast<float>(
              1 / std::sqrt(std::inner_product(h, h + tokens.n_hidden, h, 0.0))));
        }
        norms = output_norms(*backend, cache.layer(l), tokens.n_heads, tokens.n_hidden,
                             [&](int64_t head, const Act& columns) {
                               const Act from = tokens.output_columns(l, head);
                               std::memcpy(columns.data, from.data,
                                           size_t(from.rows * from.cols * from.elem_bytes));
                             });
      }
      const DeviceArray<float, 1> weights(*backend, inverse_norms);
      backend->run(Vote{.window = window.ring(l),
                        .first = tokens.n % n_repeating,
                        .n_queries = n_repeating,
                        .kv = cache.layer(l),
                        .scale = scale,
                        .reduce = decode.reduce,
                        .over_queries = GroupReduce::kMax,
                        .query_weights = weights.view(),
                        .row_weights = norms.view(),
                        .votes = to});
      for (int64_t h = 0; h < to.dim(0); ++h)  // what repeats is no part of the prompt
        std::fill_n(to[h].data + tokens.n - n_repeating, n_repeating, -1.0f);
    };
  Compressor(decode, tokens.n).run(*backend, cache, window, tokens.n_heads, votes);
  for (int l = 0; l < tokens.n_layers; ++l) {
    out["rows"].push_back(Json::array());
    for (int64_t h = 0; h < tokens.n_kv_heads; ++h)
      out["rows"].back().push_back(positions(cache.layer(l), h));
  }
  return out;
}

int run(int argc, char** argv) {
  require(argc == 9, "choices POLICIES N HEADS KV_HEADS HEAD_DIM LAYERS HIDDEN FILE");
  const auto number = [&](int i) { return int64_t{std::stoll(argv[i])}; };
  Tokens tokens{number(2), number(3), number(4), number(5), number(6), number(7), {}};
  tokens.values.resize(static_cast<size_t>(tokens.n_layers * tokens.layer_size()));
  std::ifstream file(argv[8], std::ios::binary);
  file.read(reinterpret_cast<char*>(tokens.values.data()),
            std::ssize(tokens.values) * int64_t{sizeof(float)});
  require(bool(file), "{}: too short", argv[8]);
  fmt::print("{}\n", choose(argv[1], tokens).dump());
  return 0;
}

}  // namespace
}  // namespace ei::test

int main(int argc, char** argv) {
  try {
    return ei::test::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
