#include "ei/engine/sequence.h"

#include <algorithm>

#include "ei/base/fail.h"

namespace ei {
namespace {

double ms(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

double per_second(int64_t n, double ms) { return ms > 0 ? double(n) * 1000 / ms : 0; }

}  // namespace

Sequence::Sequence(Engine::Impl& engine, Context& context, const Request& request,
                   SequenceOptions options)
    : engine_(engine),
      context_(context),
      options_(std::move(options)),
      start_(Clock::now()),
      sampler_(*engine.backend, engine.tokenizer->vocab_size(), /*max_rows=*/1),
      text_(*engine.tokenizer, /*skip_special=*/true),
      filter_(request.stop) {
  std::vector<int32_t> prompt = request.messages.empty()
                                    ? request.tokens
                                    : engine.encode_chat(request.messages, request.thinking);
  const auto n_prompt = static_cast<int64_t>(prompt.size());
  const int64_t context_size = engine.model->config().max_positions;
  max_new_ =
      std::clamp<int64_t>(request.max_tokens, 0, std::max<int64_t>(0, context_size - n_prompt));
  context.check(n_prompt, n_prompt + max_new_, request);

  if (!request.ignore_eos) ends_ = engine.eos;
  ends_.insert(options_.stop_tokens.begin(), options_.stop_tokens.end());
  compressor_.emplace(request.decode, n_prompt);
  sampler_state_.emplace(*engine.backend, request.sampling.value_or(engine.default_sampling),
                         prompt, max_new_,
                         SamplerState::Options{.biases = options_.logit_bias,
                                               .ends = {ends_.begin(), ends_.end()},
                                               .min_tokens = options_.min_tokens});
  context.begin(std::move(prompt), request.prefill, request.decode,
                options_.score_prompt ? Hidden::kAll : Hidden::kLast);
  n_cached_ = context.n_read();
  result_.prompt_tokens = n_prompt;
  result_.cached_tokens = n_cached_;
}

void Sequence::read_chunk(Activations& act, int64_t max_rows,
                          const std::function<void()>& between_layers) {
  const Chunk chunk = context_.read_chunk(act, max_rows, between_layers);
  if (options_.score_prompt) report_prompt(act, chunk);
  if (reading()) return;
  if (max_new_ == 0) return finish(FinishReason::kLength);
  const Act logits = engine_.model->logits(act, act.rows() - 1, 1);
  if (compressor_->due(context_.cache()))
    compressor_->run(*engine_.backend, context_.cache(), context_.window(),
                     engine_.model->config().n_heads);
  draw(logits);
}

// What the chunk's rows say of the tokens that follow them.
void Sequence::report_prompt(Activations& act, const Chunk& chunk) {
  const std::vector<int32_t>& prompt = context_.prompt();
  for (int64_t i = 0; i < chunk.size; i += kScoreRows) {
    const int64_t at = chunk.begin + i;
    const int64_t n_rows = std::min({kScoreRows, chunk.size - i, context_.n_prompt() - 1 - at});
    if (n_rows <= 0) break;
    const Act logits = engine_.model->logits(act, i, n_rows);
    const LogitRows rows(*engine_.backend, logits);
    for (int64_t r = 0; r < n_rows; ++r)
      delta_.prompt_reports.push_back(rows.report(r, prompt[static_cast<size_t>(at + 1 + r)],
                                                  options_.top_logprobs,
                                                  engine_.tokenizer->vocab_size()));
  }
}

Running Sequence::running() {
  context_.cache().reserve(1);
  return {&context_.cache(), &context_.window(), &*compressor_, token_};
}

void Sequence::accept(const Act& logits) {
  context_.wrote(token_);
  draw(logits);
}

void Sequence::draw(const Act& logits) {
  const auto n_drawn = static_cast<int64_t>(result_.tokens.size());
  const Sampler::Row row = {.state = &*sampler_state_};
  const int32_t drawn = sampler_.draw(logits, {&row, 1})[0];
  check_drawn(drawn);
  token_ = drawn;

  result_.tokens.push_back(token_);
  ++delta_.n_tokens;
  if (n_drawn == 0) result_.timings.prefill_ms = ms(Clock::now() - start_);
  if (ends_.contains(token_)) return finish(FinishReason::kStop);
  if (options_.top_logprobs >= 0)
    delta_.reports.push_back(
        LogitRows(*engine_.backend, logits)
            .report(0, token_, options_.top_logprobs, engine_.tokenizer->vocab_size()));
  emit(filter_.push(text_.push(token_)));
  if (filter_.stopped()) return finish(FinishReason::kStop);
  if (n_drawn + 1 == max_new_) finish(FinishReason::kLength);
}

void Sequence::finish(FinishReason reason) {
  if (finished_) return;
  emit(filter_.push(text_.finish()));
  emit(filter_.finish());
  Timings& t = result_.timings;
  const auto n_drawn = static_cast<int64_t>(result_.tokens.size());
  const double total_ms = ms(Clock::now() - start_);
  if (n_drawn == 0) t.prefill_ms = total_ms;
  t.decode_ms = total_ms - t.prefill_ms;
  t.prefill_tps = per_second(std::min(n_read(), n_prompt()) - n_cached_, t.prefill_ms);
  t.decode_tps = per_second(std::max<int64_t>(0, n_drawn - 1), t.decode_ms);
  if (!reading()) {
    const PrefillStats stats = context_.plan().stats();
    result_.sparsity = {.density = stats.attended_pairs / stats.dense_pairs,
                        .kept_blocks_mean = stats.kept_blocks_mean,
                        .rigid_heads = stats.rigid_heads,
                        .dynamic_heads = stats.dynamic_heads};
    context_.finish_answer();
  } else {
    context_.keep_prefix();
  }
  const KvCache& cache = context_.cache();
  result_.kv = {.bytes = cache.bytes(),
                .bytes_full = cache.full_bytes(),
                .entry_bytes = cache.entry_bytes(),
                .entry_bytes_full = cache.shape().entry_bytes(cache.n_tokens()),
                .compressed = cache.compacted()};
  result_.finish_reason = reason;
  finished_ = true;
}

void Sequence::emit(const std::string& text) {
  result_.text += text;
  delta_.text += text;
}

}  // namespace ei
