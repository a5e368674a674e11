#include "ei/engine/sequence.h"

#include <algorithm>

#include "ei/base/communicator.h"
#include "ei/base/fail.h"
#include "ei/engine/votes.h"

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
      prompt_(request.messages.empty() ? request.tokens
                                       : engine.encode_chat(request.messages, request.thinking)),
      prefill_(request.prefill),
      decode_(request.decode),
      given_(request.given),
      compressor_(request.decode, std::ssize(prompt_)),
      text_(*engine.tokenizer, /*skip_special=*/!options_.show_special),
      filter_(request.stop) {
  const int64_t n_prompt = std::ssize(prompt_);
  const int64_t context_size = engine.model->config().max_positions;
  max_new_ =
      std::clamp<int64_t>(request.max_tokens, 0, std::max<int64_t>(0, context_size - n_prompt));
  context.check(n_prompt, n_prompt + max_new_, request);

  if (!request.ignore_eos) ends_ = engine.eos;
  ends_.insert(options_.stop_tokens.begin(), options_.stop_tokens.end());
  sampling_.emplace(*engine.backend, request.sampling.value_or(engine.default_sampling), prompt_,
                    max_new_,
                    SamplerState::Options{.biases = options_.logit_bias,
                                          .ends = {ends_.begin(), ends_.end()},
                                          .min_tokens = options_.min_tokens});
  if (options_.grammar) matcher_.emplace(options_.grammar);
  result_.prompt_tokens = n_prompt;
}

void Sequence::begin() {
  if (begun_) return;
  context_.begin(std::move(prompt_), prefill_, decode_, all_rows() ? Hidden::kAll : Hidden::kLast,
                 options_.reuse);
  begun_ = true;
}

void Sequence::fork(Sequence& read) {
  context_.fork(read.context_, decode_);
  begun_ = read_ = true;
}

void Sequence::end_chunk(Activations& act, const Chunk& chunk) {
  if (all_rows() &&
      !is_finite(*engine_.backend, engine_.model->residual(act).slice(chunk.size - 1, 1)))
    context_.blame_layer(act, chunk);
  context_.end_chunk();
  if (all_logits()) report_prompt(act, chunk);
  read_ = context_.n_read() == n_prompt();
  pool(act, chunk);
}

void Sequence::compress() {
  context_.compress([&] {
    compressor_.run(*engine_.backend, context_.cache(), context_.window(),
                    engine_.model->config().n_heads,
                    make_votes(engine_, prefill_, decode_, context_));
  });
}

// What the chunk's rows say of the tokens that follow them.
void Sequence::report_prompt(Activations& act, const Chunk& chunk) {
  const std::vector<int32_t>& prompt = context_.prompt();
  for (int64_t i = 0; i < chunk.size; i += kScoreRows) {
    const int64_t at = chunk.begin + i;
    const Act logits = engine_.model->logits(act, i, std::min(kScoreRows, chunk.size - i));
    if (options_.on_logits) options_.on_logits(logits, at);
    const int64_t n_rows = std::min(logits.rows, n_prompt() - 1 - at);
    if (!options_.score_prompt || n_rows <= 0) continue;
    const LogitRows rows(*engine_.backend, logits);
    for (int64_t r = 0; r < n_rows; ++r)
      delta_.prompt_reports.push_back(rows.report(r, prompt[static_cast<size_t>(at + 1 + r)],
                                                  options_.top_logprobs, engine_.n_ids()));
  }
}

void Sequence::pool(Activations& act, const Chunk& chunk) {
  using enum SequenceOptions::Pooling;
  if (options_.pooling == kNone || (options_.pooling == kLast && !read_)) return;
  const bool all = options_.pooling == kMean;
  const LogitRows rows(*engine_.backend,
                       engine_.model->normed(act, all ? 0 : act.rows() - 1, all ? chunk.size : 1));
  hidden_.resize(static_cast<size_t>(engine_.model->config().hidden));
  for (int64_t r = 0; r < (all ? chunk.size : 1); ++r)
    std::ranges::transform(hidden_, rows[r], hidden_.begin(), std::plus<>());
  if (!read_) return;
  const double n = all ? double(n_prompt()) : 1;
  for (const double sum : hidden_) result_.hidden.push_back(static_cast<float>(sum / n));
}

void Sequence::constrain() {
  if (!matcher_) return;
  std::vector<uint32_t> none;
  const std::span<const uint32_t> allowed = [&]() -> std::span<const uint32_t> {
    try {
      return matcher_->allowed();
    } catch (const Error& error) {
      no_token_ = error.what();
      none.resize(static_cast<size_t>((engine_.n_ids() + 31) / 32));
      return none;
    }
  }();
  sampling_->allow(*engine_.backend, allowed);
}

void Sequence::accept(int32_t token, const Act& logits) {
  const auto n_drawn = std::ssize(result_.tokens);
  if (options_.on_logits && n_drawn > 0) options_.on_logits(logits, context_.n_read() - 1);
  const bool is_given = n_drawn < std::ssize(given_);
  if (is_given) {
    token = given_[static_cast<size_t>(n_drawn)];
  } else {
    if (token == Sample::kNoneLeft && !no_token_.empty()) throw NothingLeft(no_token_);
    check_drawn(token);
  }
  token_ = token;
  result_.tokens.push_back(token);
  ++delta_.n_tokens;
  if (n_drawn == 0) result_.timings.prefill_ms = ms(Clock::now() - start_);
  if (!is_given && ends_.contains(token)) return finish(FinishReason::kStop);
  if (options_.top_logprobs >= 0)
    delta_.reports.push_back(LogitRows(*engine_.backend, logits)
                                 .report(0, token, options_.top_logprobs, engine_.n_ids()));
  if (!is_given) emit(filter_.push(text_.push(token)));
  if (filter_.stopped()) {
    result_.stop = filter_.stop();
    return finish(FinishReason::kStop);
  }
  if (matcher_ && (!matcher_->accept(token) || matcher_->must_end()))
    return finish(FinishReason::kStop);
  if (n_drawn + 1 == max_new_) finish(FinishReason::kLength);
}

void Sequence::cancel() noexcept {
  try {
    finish(FinishReason::kCancelled);
  } catch (...) {
    fail(std::current_exception());
  }
}

void Sequence::fail(std::exception_ptr error) noexcept {
  error_ = std::move(error);
  finished_ = true;
}

void Sequence::finish(FinishReason reason) {
  if (finished_) return;
  emit(filter_.push(text_.finish()));
  emit(filter_.finish());
  Timings& t = result_.timings;
  const auto n_drawn = static_cast<int64_t>(result_.tokens.size());
  if (n_drawn == 0) {  // no token has waited for what was read; a copy does
    char nothing = 0;
    engine_.backend->copy_out(&nothing, &nothing, 0);
  }
  const double total_ms = ms(Clock::now() - start_);
  if (n_drawn == 0) t.prefill_ms = total_ms;
  t.decode_ms = total_ms - t.prefill_ms;
  result_.cached_tokens = n_cached();
  result_.host_tokens = n_host();
  result_.loaded_tokens = n_loaded();
  result_.read_tokens = n_read();
  t.prefill_tps = per_second(n_read() - n_cached(), t.prefill_ms);
  t.decode_tps = per_second(std::max<int64_t>(0, n_drawn - 1), t.decode_ms);
  if (read_) {
    const PrefillStats& stats = context_.stats();
    result_.sparsity = {.density = stats.attended_pairs / stats.dense_pairs,
                        .kept_blocks_mean = double(stats.kept_blocks) /
                                            double(std::max<int64_t>(1, stats.n_sparse)),
                        .rigid_heads = stats.rigid_heads,
                        .dynamic_heads = stats.dynamic_heads};
    context_.finish_answer();
  }
  if (begun_) {
    const KvCache& cache = context_.cache();
    // Of all ranks: they have as many heads, whose rows are known, and about as many pages.
    const int n = engine_.backend->ranks().size();
    const int64_t row_bytes = 2 * cache.shape().layout.entry_bytes();
    result_.kv = {.bytes = n * cache.bytes(),
                  .bytes_full = n * cache.full_bytes(),
                  .entry_bytes = n * cache.entry_bytes() + compressor_.rows_ahead() * row_bytes,
                  .entry_bytes_full = n * cache.shape().entry_bytes(cache.n_tokens()),
                  .compressed = cache.compacted()};
  }
  result_.finish_reason = reason;
  finished_ = true;
}

void Sequence::emit(const std::string& text) {
  result_.text += text;
  delta_.text += text;
}

}  // namespace ei
