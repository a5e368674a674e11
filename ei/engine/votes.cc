#include "ei/engine/votes.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ei/base/fail.h"
#include "ei/decode/expected.h"
#include "ei/decode/output_norms.h"
#include "ei/policy/named.h"

namespace ei {
namespace {

constexpr std::string_view kRepeat = "\n\nRepeat the previous context exactly.\n\n";
constexpr int64_t kMostAsked = 32;  // tokens of it
constexpr int64_t kLead = 8;        // tokens of a piece that are those before it

PrefillPolicy dense(PrefillPolicy policy) {
  policy.threshold_len = PrefillPolicy::dense().threshold_len;
  return policy;
}

// Of a prompt and what is read behind it to repeat a piece.
int64_t most_repeated(const DecodePolicy& decode, int64_t n_prompt) {
  return n_prompt + kMostAsked + kLead + std::min(decode.window, n_prompt);
}

// 1 / |h| of those of a layer's inputs h that are of tokens from `first` on; `begin` is the token
// of the first.
void invert_norms(const Act& inputs, int64_t begin, int64_t first, std::vector<float>& to) {
  for (int64_t i = std::max<int64_t>(0, first - begin); i < inputs.rows; ++i) {
    const auto* h = static_cast<const float*>(inputs.slice(i, 1).data);
    const double square = std::inner_product(h, h + inputs.cols, h, 0.0);
    to[static_cast<size_t>(begin + i - first)] =
        square > 0 ? static_cast<float>(1 / std::sqrt(square)) : 0;
  }
}

// For every row of the prompt the highest attention that a query pays it, or by_output the most
// that it moves the query's hidden state, while the model reads the prompt again, piece by piece,
// as what it answers to a request to repeat it: [n_layers], [n_kv_heads, n_prompt] each.
std::vector<std::vector<float>> repeat(Engine::Impl& engine, const PrefillPolicy& prefill,
                                       const DecodePolicy& decode, Context& context) {
  Backend& backend = *engine.backend;
  const ModelConfig& config = engine.model->config();
  const KvCache& cache = context.cache();
  const std::vector<int32_t>& prompt = context.prompt();
  const auto n = std::ssize(prompt);
  require(backend.act_bytes() == sizeof(float),
          "{}: what the model attends to as it repeats a prompt is counted on the CPU alone; run "
          "there (--device cpu) or keep the cache by another policy",
          name_of(decode));
  std::vector<int32_t> asked;
  if (engine.longest_token > 0) asked = engine.tokenizer->encode(kRepeat, /*add_bos=*/false);
  asked.resize(static_cast<size_t>(std::min(std::ssize(asked), kMostAsked)));

  KvShape shape = cache.shape();
  shape.max_tokens = most_repeated(decode, n);
  require(
      shape.max_tokens <= config.max_positions,
      "{}: to be repeated in pieces of {} tokens, the prompt of {} needs {}, the model's context "
      "is {}; set a smaller window",
      name_of(decode), decode.window, n, shape.max_tokens, config.max_positions);
  std::vector<DeviceArray<float, 2>> output_norms;
  for (int l = 0; decode.by_output && l < config.n_layers; ++l)
    output_norms.push_back(ei::output_norms(
        backend, cache.layer(l), config.n_heads, config.hidden,
        [&](int64_t head, const Act& out) { engine.model->output_columns(l, head, out); }));
  KvCache again(backend, cache.pool(),
                shape);  // shares full pages, so that the cache stays as it is
  again.fork(cache);
  const int64_t n_shared = n / shape.layout.rows * shape.layout.rows;
  PrefillPlan plan(backend, dense(prefill), engine.prefill_shape(dense(prefill), shape.max_tokens));
  Activations act(backend, config, std::min(plan.chunk_rows(n), shape.max_tokens - n_shared), 1);

  std::vector<std::vector<float>> highest(static_cast<size_t>(config.n_layers));
  for (auto& votes : highest) votes.resize(static_cast<size_t>(config.n_kv_heads * n));
  const DeviceArray<float, 2> votes(backend, {config.n_kv_heads, n});
  for (int64_t at = 0; at < n; at += decode.window) {
    std::vector<int32_t> tokens = prompt;
    tokens.insert(tokens.end(), asked.begin(), asked.end());
    tokens.insert(tokens.end(), prompt.begin() + std::max<int64_t>(0, at - kLead),
                  prompt.begin() + std::min(n, at + decode.window));
    const auto n_all = std::ssize(tokens), n_queries = n_all - n;
    QueryWindow window(backend, config.n_layers, n_queries, config.n_heads * config.head_dim);
    again.truncate(n_shared);
    plan.begin(n_all, n_shared);
    std::vector<std::vector<float>> inverse_norms(highest.size());  // of the queries' inputs
    while (again.n_tokens() < n_all) {
      ChunkReader reader(backend, *engine.model, act, again, window, plan, tokens, Hidden::kLast);
      for (int l = 0; l < config.n_layers; ++l) {
        if (decode.by_output) {
          std::vector<float>& of_layer = inverse_norms[static_cast<size_t>(l)];
          of_layer.resize(static_cast<size_t>(n_queries));
          invert_norms(engine.model->input(l, act), reader.chunk().begin, n, of_layer);
        }
        reader.read(1);
      }
    }
    for (int l = 0; l < config.n_layers; ++l) {
      const DeviceArray<float, 1> weights(backend, inverse_norms[static_cast<size_t>(l)]);
      backend.run(Vote{.window = window.ring(l),
                       .first = n % n_queries,
                       .n_queries = n_queries,
                       .kv = again.layer(l),
                       .scale = 1 / std::sqrt(static_cast<float>(config.head_dim)),
                       .reduce = decode.reduce,
                       .over_queries = GroupReduce::kMax,
                       .query_weights = weights.view(),
                       .row_weights = decode.by_output ? output_norms[static_cast<size_t>(l)].view()
                                                       : View<const float, 2>(),
                       .votes = votes.view()});
      const std::vector<float> piece = votes.to_host(backend);
      std::vector<float>& most = highest[static_cast<size_t>(l)];
      std::ranges::transform(most, piece, most.begin(),
                             [](float a, float b) { return std::max(a, b); });
    }
  }
  return highest;
}

// Norms of the rows of all layers, and what is held as they are made.
int64_t bytes_of_output_norms(const ModelConfig& config, int64_t n_prompt) {
  const int64_t d = config.head_dim, width = config.n_heads * d;
  return (config.n_layers * config.n_heads * n_prompt + d * (2 * width + config.hidden)) *
         int64_t{sizeof(float)};
}

}  // namespace

Compressor::Votes make_votes(Engine::Impl& engine, const PrefillPolicy& prefill,
                             const DecodePolicy& decode, Context& context) {
  switch (decode.voter) {
    case Voter::kExpected:
      return expected_votes(*engine.backend, engine.model->config(), decode, context.cache(),
                            context.window());
    case Voter::kRepeat:
      return [&backend = *engine.backend, highest = repeat(engine, prefill, decode, context)](
                 int l, const View<float, 2>& votes) {
        const std::vector<float>& of_layer = highest[static_cast<size_t>(l)];
        backend.copy_in(votes.data, of_layer.data(), std::ssize(of_layer) * int64_t{sizeof(float)});
      };
    case Voter::kWindow:
      break;
  }
  return {};
}

VotesMemory memory_of_votes(const Engine::Impl& engine, const PrefillPolicy& prefill,
                            const DecodePolicy& decode, const KvShape& shape, int64_t n_prompt) {
  const ModelConfig& config = engine.model->config();
  const int64_t width = config.n_heads * config.head_dim;
  if (decode.voter == Voter::kWindow) return {};
  if (decode.voter == Voter::kExpected)
    return {.n_pages = 0, .bytes = width * (config.head_dim + 1) * int64_t{sizeof(float)}};
  KvShape again = shape;
  again.max_tokens = most_repeated(decode, n_prompt);
  const int64_t n_read =
      again.max_tokens - n_prompt / shape.layout.rows * shape.layout.rows;  // beside shared pages
  const PrefillPlan::Shape read = engine.prefill_shape(dense(prefill), again.max_tokens);
  const int64_t n_rows = std::min(PrefillPlan::chunk_rows(dense(prefill), read, n_prompt), n_read);
  return {.n_pages = again.pages(n_read),
          .bytes = again.table_bytes(config.n_kv_heads) +
                   PrefillPlan::bytes(dense(prefill), read, again.max_tokens) +
                   (again.max_tokens - n_prompt) * config.n_layers * width *
                       engine.backend->act_bytes() +
                   Activations::bytes(*engine.backend, config, n_rows, 1) +
                   config.n_kv_heads * n_prompt * int64_t{sizeof(float)} +
                   (decode.by_output ? bytes_of_output_norms(config, n_prompt) : 0)};
}

}  // namespace ei
