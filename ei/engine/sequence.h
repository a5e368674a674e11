#pragma once

#include <algorithm>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ei/decode/compress.h"
#include "ei/decode/sampler.h"
#include "ei/engine/context.h"
#include "ei/engine/engine.h"
#include "ei/engine/logprobs.h"
#include "ei/engine/stop_filter.h"
#include "ei/grammar/matcher.h"

namespace ei {

// What servers and evaluations are asked for beyond a Request.
struct SequenceOptions {
  int64_t top_logprobs = -1;  // report so many likeliest tokens beside each token; -1: no report
  bool score_prompt = false;  // report the prompt's tokens as well; all of it is read then
  bool reuse = true;          // false: all of the prompt is read, whatever is known of it
  std::vector<LogitBias> logit_bias;
  std::vector<int32_t> stop_tokens;                // end the answer as the model's own do
  int64_t min_tokens = 0;                          // no end before so many tokens
  std::shared_ptr<grammar::TokenGrammar> grammar;  // null: the answer may be any text
  bool show_special = false;  // control tokens are part of the text, but for the end
  // The logits [n, vocab_size] of the tokens after `position` and the n - 1 that follow it. All of
  // the prompt is read then.
  std::function<void(const Act& logits, int64_t position)> on_logits;
  // What Generation::hidden is of the prompt's hidden states after the final norm: of their mean
  // all of the prompt is read.
  enum class Pooling { kNone, kLast, kMean } pooling = Pooling::kNone;
};

// What has become known of an answer since it was last asked for.
struct Delta {
  std::string text;  // whole characters
  int64_t n_tokens = 0;
  std::vector<TokenReport> reports;         // of the answer's tokens
  std::vector<TokenReport> prompt_reports;  // of the prompt's tokens but the first, with the last
};

// One answer: a prompt to be read and the tokens written after it. A Batch does both; what failed
// meanwhile is the sequence's own error and ends it.
class Sequence {
 public:
  // Rows of the prompt whose logits are made at a time, if they are wanted.
  static constexpr int64_t kScoreRows = 64;

  // Throws Error when the prompt is empty, does not fit, or a setting is out of range; `context` is
  // then as it was. Both must outlive the sequence.
  Sequence(Engine::Impl& engine, Context& context, const Request& request,
           SequenceOptions options = {});

  bool begun() const { return begun_; }
  bool reading() const { return !finished_ && !read_; }
  bool writing() const { return !finished_ && read_; }
  bool finished() const { return finished_; }
  // Whether its cache is to be compressed before it writes on.
  bool compression_due() const { return writing() && compressor_.due(context_.cache()); }
  // What ended it before its time; null: nothing did.
  const std::exception_ptr& error() const { return error_; }

  // Finds what is known of the prompt; a batch does it before the first chunk.
  void begin();
  // Ends the answer where it is.
  void cancel() noexcept;
  // Ends it for something that went wrong.
  void fail(std::exception_ptr error) noexcept;

  int64_t n_prompt() const { return result_.prompt_tokens; }
  int64_t n_read() const { return begun_ ? std::min(context_.n_read(), n_prompt()) : 0; }
  // Of them, not read for this one.
  int64_t n_cached() const { return begun_ ? context_.n_cached() : 0; }
  int64_t n_host() const { return begun_ ? context_.n_host() : 0; }
  int64_t n_loaded() const { return begun_ ? context_.n_loaded() : 0; }
  Delta take_delta() { return std::exchange(delta_, {}); }
  // Once finished without an error: everything, and how it went.
  const Generation& result() const { return result_; }

 private:
  friend class Batch;
  using Clock = std::chrono::steady_clock;
  bool all_logits() const { return options_.score_prompt || options_.on_logits; }
  bool all_rows() const {
    return all_logits() || options_.pooling == SequenceOptions::Pooling::kMean;
  }
  // Goes on from what another has read: its prompt is this one's.
  void fork(Sequence& read);
  // The chunk that the context was reading is in `act`.
  void end_chunk(Activations& act, const Chunk& chunk);
  void compress();
  // Says what may be drawn next, if not everything: perhaps nothing, which accept() throws for.
  void constrain();
  // Takes the token drawn from logits [1, vocab_size], or what `given` has in its place.
  void accept(int32_t token, const Act& logits);
  void report_prompt(Activations& act, const Chunk& chunk);
  void pool(Activations& act, const Chunk& chunk);
  void finish(FinishReason reason);
  void emit(const std::string& text);

  Engine::Impl& engine_;
  Context& context_;
  SequenceOptions options_;
  Clock::time_point start_;
  std::vector<int32_t> prompt_;  // until the context has it
  PrefillPolicy prefill_;
  DecodePolicy decode_;
  std::vector<int32_t> given_;
  std::set<int32_t> ends_;
  int64_t max_new_ = 0;
  Compressor compressor_;
  std::optional<SamplerState> sampling_;
  std::optional<grammar::Matcher> matcher_;
  std::string no_token_;  // why the matcher allows none
  StreamDecoder text_;
  StopFilter filter_;
  int32_t token_ = 0;  // the next step reads
  bool begun_ = false, read_ = false, finished_ = false;
  std::exception_ptr error_;
  std::vector<double> hidden_;  // the sum of what is pooled
  Delta delta_;
  Generation result_;
};

}  // namespace ei
