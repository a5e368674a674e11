#include "ei/engine/memory_plan.h"

#include <algorithm>

#include "ei/decode/compress.h"
#include "ei/engine/votes.h"
#include "ei/prefill/plan.h"

namespace ei {
namespace {

// How a cache is when it is compressed for the first time; never: at its end.
struct FirstCompression {
  bool happens = false;
  int64_t n_tokens = 0;
};

// Settings may be any number: what is beyond the text is cut to it.
FirstCompression first_compression(const DecodePolicy& decode, int64_t n_prompt, int64_t n_total) {
  int64_t at = n_total;
  if (!decode.is_full() && n_prompt > decode.budget) {
    at = n_prompt + std::min(decode.longest_gap(), n_total);
  } else if (!decode.is_full() && decode.regrow > 0) {
    at = std::min(decode.budget, n_total) + std::min(decode.regrow, n_total);
  }
  return {at < n_total, std::min(at, n_total)};
}

// The most that are held at a time. A compression gives every layer new pages before the old go.
// n_whole: that are kept beside a compressed cache.
int64_t most_pages(const DecodePolicy& decode, const KvShape& shape, int64_t n_heads,
                   int64_t n_prompt, int64_t n_total, int64_t n_whole) {
  const FirstCompression first = first_compression(decode, n_prompt, n_total);
  const int64_t before = shape.pages(first.n_tokens);
  if (!first.happens) return before;
  // Of a layer that keeps or has grown to so many rows a head on average: heads that hold different
  // numbers of them may each begin a page more.
  const auto of_layer = [&](int64_t rows) {
    const int64_t ragged =
        decode.split == Split::kEven || decode.split == Split::kStreaming ? 0 : 1;
    return n_heads * (shape.layout.pages(std::min(rows, n_total)) + ragged);
  };
  const int64_t budget = std::min(decode.budget, n_total);
  const int64_t kept = of_layer(decode.split == Split::kPyramid ? 2 * budget : budget);
  const int64_t grown = of_layer(
      budget + (decode.regrow > 0 ? std::min(decode.regrow, n_total) : n_total - first.n_tokens));
  const int64_t per_layer = std::max(grown, kept);
  // Where all layers compete, one of them may keep all it has.
  const int64_t most_kept = decode.split == Split::kGlobal ? before / shape.n_layers : kept;
  return std::max(before + most_kept, (shape.n_layers - 1) * per_layer +
                                          std::max(per_layer, before / shape.n_layers) + most_kept +
                                          n_whole);
}

}  // namespace

MemoryPlan plan_memory(const Engine::Impl& engine, const PrefillPolicy& prefill,
                       const DecodePolicy& decode, const KvShape& shape, int64_t page_bytes,
                       int64_t n_prompt, int64_t n_total, bool keeps_whole) {
  const ModelConfig& config = engine.model->config();
  const bool wide = !decode.is_full() && decode.scope == KvScope::kQueryHead;
  const int64_t n_heads = wide ? config.n_heads : config.n_kv_heads;
  const PrefillPlan::Shape read = engine.prefill_shape(prefill, shape.max_tokens);
  const FirstCompression first = first_compression(decode, n_prompt, n_total);

  MemoryPlan plan;
  // The prompt's dense tail and the answer.
  const int64_t tail = std::max<int64_t>(0, n_prompt - prefill.dense_tail - prefill.segment);
  const int64_t n_whole =
      keeps_whole ? shape.pages(n_total) - shape.pages(tail + 1) + shape.pages(1) : 0;
  plan.pages = most_pages(decode, shape, n_heads, n_prompt, n_total, n_whole) * page_bytes;
  plan.tables = shape.table_bytes(config.n_kv_heads);
  plan.profile = PrefillPlan::bytes(prefill, read, n_prompt) +
                 engine.backend->attention_bytes(shape.layout, config.n_kv_heads, n_prompt);
  plan.window = Compressor::window_rows(decode) * config.n_layers * config.n_heads *
                config.head_dim * engine.backend->act_bytes();
  if (first.happens) {
    // The tables grow with the heads; a layer that is compacted has one of its own.
    if (wide) plan.tables += shape.table_bytes(n_heads);
    if (keeps_whole) plan.tables += shape.table_bytes(config.n_kv_heads);
    plan.tables += shape.table_bytes(n_heads) / shape.n_layers;
    plan.compression = Compressor::bytes(decode, config.n_heads, config.n_kv_heads, first.n_tokens);
    const VotesMemory votes = memory_of_votes(engine, prefill, decode, shape, n_prompt);
    plan.compression += votes.bytes;
    plan.pages = std::max(plan.pages, (shape.pages(first.n_tokens) + votes.n_pages) * page_bytes);
  }
  plan.activations =
      Activations::bytes(*engine.backend, config,
                         std::min(PrefillPlan::chunk_rows(prefill, read, n_prompt), n_prompt), 1);
  return plan;
}

int64_t longest_prompt(const Engine::Impl& engine, const PrefillPolicy& prefill,
                       const DecodePolicy& decode, const KvShape& shape, int64_t page_bytes,
                       int64_t n_answer, int64_t available) {
  int64_t fits = 0, least_not = shape.max_tokens + 1;
  while (least_not - fits > 1) {
    const int64_t n = fits + (least_not - fits) / 2;
    const MemoryPlan plan =
        plan_memory(engine, prefill, decode, shape, page_bytes, n, n + n_answer);
    (plan.total() <= available ? fits : least_not) = n;
  }
  return fits;
}

}  // namespace ei
