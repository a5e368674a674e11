#include "ei/engine/votes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "ei/base/fail.h"
#include "ei/base/half.h"
#include "tests/support/array.h"
#include "tests/support/small_engine.h"

namespace ei::test {
namespace {

// A text that is read, layer by layer.
struct Read {
  Read(SmallEngine& small, const std::vector<int32_t>& tokens, const DecodePolicy& decode,
       PrefillPolicy prefill)
      : context(small.engine.impl()),
        act(*small.backend, small.engine.impl().model->config(), 512, 1) {
    context.begin(tokens, prefill, decode, Hidden::kLast);
    const Model& model = *small.engine.impl().model;
    norms.resize(static_cast<size_t>(model.config().n_layers));
    while (context.n_read() < std::ssize(tokens)) {
      ChunkReader chunk = context.next_chunk(act, INT64_MAX);
      for (int l = 0; l < model.config().n_layers; ++l) {
        const Act h = model.input(l, act);
        for (int64_t i = 0; i < h.rows; ++i) {
          const auto* row = static_cast<const float*>(h.slice(i, 1).data);
          norms[size_t(l)].push_back(std::sqrt(std::inner_product(row, row + h.cols, row, 0.0)));
        }
        chunk.read(1);
      }
      context.end_chunk();
    }
  }
  Context context;
  Activations act;
  std::vector<std::vector<double>> norms;  // of every layer's inputs, by token
};

// Row `first` of a page and those behind it are keys, or values.
std::vector<float> row_of(const KvLayer& kv, int64_t head, int64_t row, int64_t first) {
  const auto* page = static_cast<const char*>(kv.pages[head][row / kv.layout.rows]);
  std::vector<float> out;
  for (int64_t c = 0; c < kv.layout.head_dim; ++c)
    out.push_back(
        load(page + (first + row % kv.layout.rows) * kv.layout.row_bytes(), kv.layout.dtype, c));
  return out;
}
std::vector<float> key(const KvLayer& kv, int64_t head, int64_t row) {
  return row_of(kv, head, row, 0);
}

// |Wo v| of a query head's part of Wo and a row's value.
double output_norm(const Model& model, Backend& backend, int l, int64_t head,
                   const std::vector<float>& value) {
  const auto d = std::ssize(value), hidden = model.config().hidden;
  const DeviceArray<float, 2> columns(backend, {d, hidden});
  model.output_columns(l, head, {columns.view().data, d, hidden, sizeof(float)});
  double square = 0;
  for (int64_t i = 0; i < hidden; ++i) {
    double sum = 0;
    for (int64_t c = 0; c < d; ++c) sum += double(columns.view()[c][i]) * double(value[size_t(c)]);
    square += sum * sum;
  }
  return std::sqrt(square);
}

class VotesTest : public testing::TestWithParam<bool> {
 protected:
  static DecodePolicy policy() {
    return GetParam() ? DecodePolicy::kvzip_plus() : DecodePolicy::kvzip();
  }
};
INSTANTIATE_TEST_SUITE_P(Of, VotesTest, testing::Bool(),
                         [](const auto& of) { return of.param ? "kvzip_plus" : "kvzip"; });

// KVzip's scores, and KVzip+'s, from texts that are read from their start: the prompt, the request
// to repeat it and a piece of it. A prompt that ends inside a page, and pieces that do not divide
// it.
TEST_P(VotesTest, ThePromptVotesAsItIsRepeated) {
  SmallEngine small;
  Engine::Impl& engine = small.engine.impl();
  const ModelConfig& config = engine.model->config();
  DecodePolicy decode = policy();
  const bool plus = decode.by_output;
  decode.window = 21;
  PrefillPolicy dense = SmallEngine::request(1, 0).prefill;
  dense.threshold_len = PrefillPolicy::dense().threshold_len;
  const std::vector<int32_t> prompt = SmallEngine::request(55, 1).tokens;
  const auto n = std::ssize(prompt), group = config.n_heads / config.n_kv_heads;

  Read read(small, prompt, decode, dense);
  const int64_t pages = read.context.cache().bytes();
  const Compressor::Votes votes = make_votes(engine, dense, decode, read.context);
  EXPECT_EQ(read.context.cache().n_tokens(), n);
  EXPECT_EQ(read.context.cache().bytes(), pages);

  const auto asked =
      engine.tokenizer->encode("\n\nRepeat the previous context exactly.\n\n", false);
  std::vector<Matrix> want(size_t(config.n_layers), Matrix({config.n_kv_heads, n}));
  for (const auto& [begin, end] : {std::pair{0, 21}, {13, 42}, {34, 55}}) {  // each with a lead
    std::vector<int32_t> tokens = prompt;
    tokens.insert(tokens.end(), asked.begin(), asked.end());
    tokens.insert(tokens.end(), prompt.begin() + begin, prompt.begin() + end);
    const auto m = std::ssize(tokens) - n;
    DecodePolicy remember;
    remember.window = m;
    remember.budget = m + 1;
    Read again(small, tokens, remember, dense);
    for (int l = 0; l < config.n_layers; ++l) {
      const Act ring = again.context.window().ring(l);
      for (int64_t h = 0; h < config.n_heads; ++h) {
        const KvLayer of_prompt = read.context.cache().layer(l);
        std::vector<double> weights(size_t(n), 1);
        for (int64_t j = 0; plus && j < n; ++j)
          weights[size_t(j)] =
              output_norm(*engine.model, *small.backend, l, h,
                          row_of(of_prompt, h / group, j, of_prompt.layout.first_value()));
        for (int64_t p = n; p < n + m; ++p) {
          const float* q =
              static_cast<const float*>(ring.slice(p % ring.rows, 1).data) + h * config.head_dim;
          std::vector<double> e;
          for (int64_t j = 0; j <= p; ++j) {
            const auto k = key(again.context.cache().layer(l), h / group, j);
            e.push_back(std::exp(std::inner_product(k.begin(), k.end(), q, 0.0) /
                                 std::sqrt(double(config.head_dim))));
          }
          const double sum = std::accumulate(e.begin(), e.end(), 0.0);
          for (int64_t j = 0; j < n; ++j) {
            double& most = want[size_t(l)][h / group][j];
            const double by = plus ? again.norms[size_t(l)][size_t(p)] : 1;
            most = std::max(most, e[size_t(j)] / sum * weights[size_t(j)] / by);
          }
        }
      }
    }
  }
  const DeviceArray<float, 2> got(*small.backend, {config.n_kv_heads, n});
  for (int l = 0; l < config.n_layers; ++l) {
    votes(l, got.view());
    // Pages in bf16 round alike on both sides; products in float.
    EXPECT_LT(nmse(got.to_host(*small.backend), want[size_t(l)].v), 1e-7) << l;
  }
}

TEST_P(VotesTest, APromptThatLeavesNoRoomToBeRepeatedIsNamed) {
  SmallEngine small;  // of 1,024 positions
  const DecodePolicy decode = policy();
  const Request request = SmallEngine::request(700, 1);
  Read read(small, request.tokens, decode, request.prefill);
  try {
    make_votes(small.engine.impl(), request.prefill, decode, read.context);
    FAIL();
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_TRUE(what.starts_with(GetParam() ? "kvzip-plus: to be" : "kvzip: to be")) << what;
    EXPECT_NE(what.find("set a smaller window"), std::string::npos) << what;
  }
}

}  // namespace
}  // namespace ei::test
