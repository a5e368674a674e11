#include <algorithm>
#include <memory>

#include "ei/base/fail.h"
#include "ei/decode/decode.h"
#include "ei/engine/context.h"
#include "ei/engine/engine.h"
#include "ei/engine/engine_impl.h"
#include "ei/engine/logprobs.h"
#include "ei/engine/sequence.h"

namespace ei {

struct Session::Impl {
  Impl(Engine::Impl& e, int64_t prefix_bytes)
      : engine(e),
        context(e, prefix_bytes > 0 ? &prefixes : nullptr),
        prefixes(*e.backend, prefix_bytes) {}

  Engine::Impl& engine;
  Context context;
  PrefixCache prefixes;  // its pages are of the context's pool: goes first
  std::unique_ptr<Activations> act;

  // Room for the chunks of the prompt that the context is about to read.
  Activations& activations(int64_t logit_rows) {
    const int64_t rows = context.chunk_rows();
    if (!act || rows > act->max_rows() || logit_rows > act->max_logit_rows()) {
      act.reset();
      act =
          std::make_unique<Activations>(*engine.backend, engine.model->config(), rows, logit_rows);
    }
    return *act;
  }
};

Session::Session(Engine& engine, int64_t prefix_bytes)
    : impl_(std::make_unique<Impl>(engine.impl(), prefix_bytes)) {}
Session::~Session() = default;

void Session::clear() { impl_->context.clear(); }

Generation Session::generate(const Request& request, const Callbacks& callbacks,
                             std::stop_token cancel) {
  Engine::Impl& e = impl_->engine;
  const std::lock_guard lock(e.mutex);

  Sequence sequence(e, impl_->context, request);
  Activations& act = impl_->activations(/*logit_rows=*/1);
  Decoder decoder(*e.backend, *e.model, 1);
  const auto deliver = [&] {
    const Delta delta = sequence.take_delta();
    if (!delta.text.empty() && callbacks.on_text) callbacks.on_text(delta.text);
  };
  while (sequence.reading() && !cancel.stop_requested()) {
    sequence.read_chunk(act);
    if (callbacks.on_prefill)
      callbacks.on_prefill(sequence.n_read(), sequence.n_prompt(), sequence.n_cached());
    deliver();
  }
  while (sequence.writing() && !cancel.stop_requested()) {
    const Running running = sequence.running();
    sequence.accept(decoder.step(act, {&running, 1}));
    deliver();
  }
  sequence.cancel();  // if it has not ended by itself
  deliver();
  return sequence.result();
}

std::vector<TokenScore> Session::score(std::span<const int32_t> tokens, const Request& policies,
                                       int64_t n_prefill, const Callbacks& callbacks,
                                       std::stop_token cancel) {
  // Rows of logits made at a time: a few megabytes for the largest vocabularies.
  constexpr int64_t kRows = 64;
  Engine::Impl& e = impl_->engine;
  Context& context = impl_->context;
  Backend& backend = *e.backend;
  const std::lock_guard lock(e.mutex);
  const auto n = static_cast<int64_t>(tokens.size());
  if (n_prefill < 0) n_prefill = n;
  require(n_prefill >= 1 && n_prefill <= n, "score: {} of {} tokens are prompt, expected 1 to all",
          n_prefill, n);
  context.check(n_prefill, n, policies);
  require(n <= e.model->config().max_positions, "{} tokens, the model's context is {}", n,
          e.model->config().max_positions);

  std::vector<TokenScore> scores(tokens.size());
  const DeviceArray<int32_t, 1> targets(backend, {kRows}), argmax(backend, {kRows});
  const DeviceArray<float, 1> logprob(backend, {kRows});
  // Scores the tokens that follow the positions from `at` on, whose logits these are.
  const auto take = [&](const Act& logits, int64_t at) {
    const int64_t n_rows = logits.rows;
    const int64_t n_known = std::min(n_rows, n - 1 - at);
    std::vector<int32_t> next(static_cast<size_t>(n_rows), 0);
    std::copy_n(tokens.begin() + at + 1, n_known, next.begin());
    backend.copy_in(targets.view().data, next.data(), n_rows * int64_t{sizeof(int32_t)});
    backend.run(TokenScores{.logits = logits,
                            .targets = targets.view().slice(0, n_rows),
                            .logprob = logprob.view().slice(0, n_rows),
                            .argmax = argmax.view().slice(0, n_rows)});
    const auto logprobs = logprob.to_host(backend);
    const auto likeliest = argmax.to_host(backend);
    if (callbacks.on_logits && n_known > 0) {
      const LogitRows rows(backend, logits.slice(0, n_known));
      for (int64_t i = 0; i < n_known; ++i) callbacks.on_logits(at + 1 + i, rows[i]);
    }
    for (int64_t i = 0; i < n_known; ++i)
      scores[static_cast<size_t>(at + 1 + i)] = {logprobs[static_cast<size_t>(i)],
                                                 likeliest[static_cast<size_t>(i)]};
  };

  // Every position is to be scored: nothing can be taken from a cache, and nothing is left in it.
  const auto prompt = tokens.first(static_cast<size_t>(n_prefill));
  context.begin({prompt.begin(), prompt.end()}, policies.prefill, policies.decode, Hidden::kAll);
  Activations& act = impl_->activations(kRows);
  int64_t n_scored = 0;
  while (n_scored < n_prefill && !cancel.stop_requested()) {
    const Chunk chunk = context.read_chunk(act);
    for (int64_t i = 0; i < chunk.size; i += kRows)
      take(e.model->logits(act, i, std::min(kRows, chunk.size - i)), chunk.begin + i);
    n_scored = context.n_read();
    if (callbacks.on_prefill) callbacks.on_prefill(n_scored, n_prefill, 0);
  }

  Compressor compressor(policies.decode, n_prefill);
  Decoder decoder(backend, *e.model, 1);
  if (n_scored == n_prefill && compressor.due(context.cache()))
    compressor.run(backend, context.cache(), context.window(), e.model->config().n_heads);
  for (; n_scored >= n_prefill && n_scored < n && !cancel.stop_requested(); ++n_scored) {
    const Running running = {&context.cache(), &context.window(), &compressor,
                             tokens[static_cast<size_t>(n_scored)]};
    take(decoder.step(act, {&running, 1}), n_scored);
  }
  scores.resize(static_cast<size_t>(n_scored));
  context.clear();
  return scores;
}

}  // namespace ei
