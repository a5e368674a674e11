#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ei/decode/decode.h"
#include "ei/decode/sampler.h"
#include "ei/engine/context.h"
#include "ei/engine/engine.h"
#include "ei/engine/logprobs.h"
#include "ei/engine/stop_filter.h"

namespace ei {

// What servers are asked for beyond a Request.
struct SequenceOptions {
  int64_t top_logprobs = -1;  // report so many likeliest tokens beside each token; -1: no report
  bool score_prompt = false;  // report the prompt's tokens as well; all of it is read then
  std::vector<LogitBias> logit_bias;
  std::vector<int32_t> stop_tokens;  // end the answer as the model's own do
  int64_t min_tokens = 0;            // no end before so many tokens
};

// What has become known of an answer since it was last asked for.
struct Delta {
  std::string text;  // whole characters
  int64_t n_tokens = 0;
  std::vector<TokenReport> reports;         // of the answer's tokens
  std::vector<TokenReport> prompt_reports;  // of the prompt's tokens but the first, with the last
};

// One answer: reads a prompt in chunks, then writes tokens, one per decode step, in a batch with
// others or alone:
//   while (sequence.reading()) sequence.read_chunk(act);
//   while (sequence.writing()) sequence.accept(decoder.step(act, {sequence.running()}));
class Sequence {
 public:
  // Rows of logits that the Activations passed to read_chunk() need when the prompt is scored.
  static constexpr int64_t kScoreRows = 64;

  // Throws Error when the prompt is empty, does not fit, or a setting is out of range; `context` is
  // then as it was. Both must outlive the sequence.
  Sequence(Engine::Impl& engine, Context& context, const Request& request,
           SequenceOptions options = {});

  bool reading() const { return !finished_ && context_.n_read() < context_.n_prompt(); }
  bool writing() const { return !finished_ && !reading(); }
  bool finished() const { return finished_; }

  // With the last chunk comes the first token.
  void read_chunk(Activations& act, int64_t max_rows = INT64_MAX,
                  const std::function<void()>& between_layers = {});
  // The next token, for Decoder::step. Throws Error when there is no memory for it; the sequence is
  // then as it was.
  Running running();
  // Draws a token of logits [1, vocab_size].
  void accept(const Act& logits);
  // Ends the answer where it is.
  void cancel() { finish(FinishReason::kCancelled); }

  int64_t n_prompt() const { return context_.n_prompt(); }
  int64_t n_read() const { return context_.n_read(); }
  int64_t n_cached() const { return n_cached_; }
  Delta take_delta() { return std::exchange(delta_, {}); }
  // Once finished: everything, and how it went.
  const Generation& result() const { return result_; }

 private:
  using Clock = std::chrono::steady_clock;

  void report_prompt(Activations& act, const Chunk& chunk);
  void draw(const Act& logits);
  void finish(FinishReason reason);
  void emit(const std::string& text);

  Engine::Impl& engine_;
  Context& context_;
  SequenceOptions options_;
  Clock::time_point start_;
  std::set<int32_t> ends_;
  int64_t max_new_ = 0;
  int64_t n_cached_ = 0;
  std::optional<Compressor> compressor_;
  Sampler sampler_;
  std::optional<SamplerState> sampler_state_;
  StreamDecoder text_;
  StopFilter filter_;
  int32_t token_ = 0;  // the next step reads
  bool finished_ = false;
  Delta delta_;
  Generation result_;
};

}  // namespace ei
