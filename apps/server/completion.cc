#include "apps/server/completion.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <iterator>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/server/answer_json.h"
#include "apps/server/answer_writer.h"
#include "apps/server/error_replies.h"
#include "apps/server/log.h"
#include "apps/server/scores.h"
#include "apps/server/tools.h"
#include "ei/io/json.h"

namespace ei::server {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One request on its way: all its choices, and what has come of them. The scheduler's thread leaves
// news and goes on; a renderer makes of it what is sent, a little at a time, and not faster than
// the client takes it.
class Completion : public std::enable_shared_from_this<Completion> {
 public:
  Completion(CompletionContext& context, std::shared_ptr<Exchange> exchange, ApiRequest request)
      : context_(context), exchange_(std::move(exchange)), request_(std::move(request)) {
    AnswerHead head{.id = exchange_->request().id.substr(4), .model = context_.model};
    head.created = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
    writer_ = make_writer(std::move(head), request_);
  }

  void start(std::vector<std::vector<int32_t>> prompts);

 private:
  struct News {
    std::optional<OrderedJson> progress;  // the last
    Delta delta;                          // all since the renderer looked
    std::optional<Outcome> outcome;
    bool is_any = false;
  };
  struct Choice {
    explicit Choice(Scores scores) : scores(std::move(scores)) {}
    std::stop_source cancel;
    // The scheduler's.
    int64_t n_tokens = 0;
    Clock::time_point last_token;
    // Guarded by mutex_.
    News news;
    bool is_enough = false;  // the answer was ended where it was: it has what is wanted
    // The renderer's.
    std::vector<int32_t> prompt;  // to be sent as well
    bool is_read = false;         // all of it
    bool echoed = false;          // its text was sent
    std::string new_text;
    std::deque<TokenReport> reports, prompt_reports;  // not yet rendered
    int64_t text_offset = 0;                          // of the next token reported
    std::optional<AnswerParser> parser;               // of a chat whose answer is taken apart
    bool is_parsed = false;                           // all of it
    std::vector<AnswerPart> parts;                    // of a whole answer, with its scores
    Scores scores;
    double logprob = 0;  // of all its tokens, where the likeliest answers are wanted
    std::optional<Outcome> outcome;
    bool ended = false;  // and nothing is left to be sent
  };

  template <class F>
  void tell(size_t i, F f);
  void wake();
  void on_progress(size_t i, int64_t done, int64_t total, int64_t cached, double ms);
  void on_delta(size_t i, Delta delta);
  void on_end(size_t i, Outcome outcome);

  void render();
  bool render_some(size_t i);
  void take(size_t i, News news);
  std::vector<AnswerPart> parts_of(Choice& choice, std::string text);
  void finish();
  void fail(const std::exception& error);
  void begin_stream();
  void answer(HttpReply reply);
  bool scored() const { return request_.options.top_logprobs >= 0; }
  std::vector<size_t> best() const;
  std::optional<HttpReply> failure(const Choice& choice) const;
  void cancel();
  void send(std::string events) {
    if (!events.empty()) exchange_->write(std::move(events));
  }
  Usage usage() const;

  CompletionContext& context_;
  const std::shared_ptr<Exchange> exchange_;
  const ApiRequest request_;
  std::unique_ptr<AnswerWriter> writer_;
  int64_t n_prompt_ = 0;  // tokens, of the first
  const Clock::time_point start_ = Clock::now();
  std::deque<Choice> choices_;
  size_t n_ended_ = 0;
  std::optional<std::stop_callback<std::function<void()>>> on_gone_;  // before choices go

  std::mutex mutex_;       // guards news and these
  bool is_woken_ = false;  // render() is running or about to
  // This, while there is news for a client that has not taken what it was sent: nobody else may be
  // left to hold it.
  std::shared_ptr<Completion> stalled_;
};

void Completion::start(std::vector<std::vector<int32_t>> prompts) {
  AnswerFormat format = context_.format;
  if (request_.options.grammar) format.think_begin.clear();  // all of it is of the form
  const bool has_parts = !request_.parts.tools.empty() || !format.think_begin.empty();
  const bool is_chat = request_.dialect != Dialect::kCompletions;
  n_prompt_ = std::ssize(prompts[0]);
  std::vector<Job> jobs;
  for (const auto& prompt : prompts) {
    for (int64_t k = 0; k < request_.best_of; ++k) {
      const size_t i = choices_.size();
      Job job;
      job.request = request_.request;
      job.request.tokens = prompt;
      job.request.sampling->seed += static_cast<uint64_t>(k);
      job.options = request_.options;
      if (request_.best_of > request_.n)
        job.options.top_logprobs = std::max<int64_t>(0, job.options.top_logprobs);
      job.deadline = context_.deadline(start_, request_.timeout_ms);
      // Callbacks hold the completion, which lives until the last of them was called.
      const auto self = shared_from_this();
      if (request_.stream && request_.return_progress) {
        job.on_prefill = [self, i](int64_t done, int64_t total, int64_t cached, double ms) {
          self->on_progress(i, done, total, cached, ms);
        };
      }
      job.on_delta = [self, i](Delta delta) { self->on_delta(i, std::move(delta)); };
      job.on_end = [self, i](Outcome outcome) { self->on_end(i, std::move(outcome)); };
      jobs.push_back(std::move(job));
      Choice& choice = choices_.emplace_back(Scores(context_.tokenizer, is_chat));
      if (is_chat && has_parts) choice.parser.emplace(format, request_.parts);
      if (request_.echo) choice.prompt = prompt;
      jobs.back().cancel = choice.cancel.get_token();
    }
  }
  on_gone_.emplace(exchange_->gone(), [this] { cancel(); });
  exchange_->on_room([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    const std::lock_guard lock(self->mutex_);
    if (self->stalled_) self->wake();
  });
  context_.scheduler.submit(std::move(jobs), [this] {
    if (request_.stream) begin_stream();  // a refusal has a status of its own
  });
}

void Completion::begin_stream() {
  HttpReply head;
  head.content_type = "text/event-stream";
  head.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  head.body = writer_->begin(choices_.size(), n_prompt_);
  context_.metrics.http_reply(head.status);
  exchange_->begin(std::move(head));
  exchange_->keep_alive(writer_->ping(), context_.ping_interval);
}

void Completion::cancel() {
  for (Choice& choice : choices_) choice.cancel.request_stop();
}

// On the scheduler's thread: `f` adds to a choice's news. Whatever fails here fails this request.
template <class F>
void Completion::tell(size_t i, F f) {
  try {
    const std::lock_guard lock(mutex_);
    f(choices_[i].news);
    choices_[i].news.is_any = true;
    if (!is_woken_) wake();
  } catch (const std::exception&) {
    cancel();
  }
}

// Has the news rendered, or once the client has taken what it was sent. Under the mutex.
void Completion::wake() {
  stalled_ = exchange_->has_room() ? nullptr : shared_from_this();
  if (stalled_) return;
  is_woken_ = context_.renderers.post([self = shared_from_this()] { self->render(); });
}

void Completion::on_progress(size_t i, int64_t done, int64_t total, int64_t cached, double ms) {
  tell(i, [&](News& news) {
    news.progress = {{"total", total}, {"cache", cached}, {"processed", done}, {"time_ms", ms}};
  });
}

void Completion::on_delta(size_t i, Delta delta) {
  Choice& choice = choices_[i];
  const auto now = Clock::now();
  if (delta.n_tokens > 0) {
    if (choice.n_tokens == 0) {
      context_.metrics.first_token(seconds_since(start_));
    } else {
      context_.metrics.next_token(std::chrono::duration<double>(now - choice.last_token).count());
    }
    choice.n_tokens += delta.n_tokens;
    choice.last_token = now;
  }
  tell(i, [&](News& news) {
    const auto append = [](auto& all, auto& more) {
      std::ranges::move(more, std::back_inserter(all));
    };
    news.delta.text += delta.text;
    news.delta.n_tokens += delta.n_tokens;
    append(news.delta.reports, delta.reports);
    append(news.delta.prompt_reports, delta.prompt_reports);
  });
}

void Completion::on_end(size_t i, Outcome outcome) {
  {
    const std::lock_guard lock(mutex_);
    FinishReason& reason = outcome.generation.finish_reason;
    if (choices_[i].is_enough && reason == FinishReason::kCancelled) reason = FinishReason::kStop;
  }
  context_.metrics.ended(outcome, seconds_since(start_), request_.request);
  log_outcome(exchange_->request().id, outcome);
  tell(i, [&](News& news) { news.outcome = std::move(outcome); });
}

// On a renderer: some of the news of every choice; for the rest it comes again.
void Completion::render() {
  bool more = false;
  try {
    for (size_t i = 0; i < choices_.size(); ++i) {
      News news;
      {
        const std::lock_guard lock(mutex_);
        news = std::exchange(choices_[i].news, {});
      }
      take(i, std::move(news));
      more |= render_some(i);
    }
    if (n_ended_ == choices_.size()) return finish();
  } catch (const std::exception& error) {
    return fail(error);
  }
  const std::lock_guard lock(mutex_);
  is_woken_ = false;
  if (more || std::ranges::any_of(choices_, [](const Choice& c) { return c.news.is_any; })) wake();
}

void Completion::take(size_t i, News news) {
  Choice& choice = choices_[i];
  if (news.progress) send(writer_->progress(i, *news.progress));
  choice.is_read |= news.delta.n_tokens > 0;
  choice.new_text += news.delta.text;
  std::ranges::move(news.delta.reports, std::back_inserter(choice.reports));
  std::ranges::move(news.delta.prompt_reports, std::back_inserter(choice.prompt_reports));
  if (news.outcome) choice.outcome = std::move(news.outcome);
}

// Text with so many scores, sent or added to the whole answer; or the end. Whether there is more.
bool Completion::render_some(size_t i) {
  constexpr size_t kMostScores = 64;
  Choice& choice = choices_[i];
  if (choice.ended) return false;
  const bool is_done = choice.outcome && !failure(choice);
  std::string text;
  Scores part(context_.tokenizer, request_.dialect != Dialect::kCompletions);
  Scores& scores = request_.stream ? part : choice.scores;
  bool is_any = false;
  // The prompt, before the first of its scores.
  if (request_.echo && (choice.is_read || is_done || !choice.prompt_reports.empty()) &&
      !std::exchange(choice.echoed, true)) {
    is_any = true;
    text = context_.tokenizer.decode(choice.prompt, true);
    if (scored() && !choice.prompt.empty()) scores.add_first(choice.prompt[0], choice.text_offset);
  }
  auto& reports = is_any || !choice.prompt_reports.empty() ? choice.prompt_reports : choice.reports;
  if (!is_any && &reports == &choice.reports) text = std::exchange(choice.new_text, {});
  is_any |= !text.empty() || !reports.empty();
  std::vector<AnswerPart> parts = parts_of(choice, std::move(text));
  if (!is_any && is_done && choice.parser && !std::exchange(choice.is_parsed, true)) {
    parts = choice.parser->finish();
    is_any = !parts.empty();
  }
  for (size_t k = 0; k < kMostScores && !reports.empty(); ++k) {
    if (scored()) scores.add(reports.front(), choice.text_offset);
    if (&reports == &choice.reports) choice.logprob += double(reports.front().chosen.logprob);
    reports.pop_front();
  }
  if (is_any && request_.stream) {
    send(writer_->add(i, std::move(parts), scored() ? scores.json() : "null"));
  } else if (is_any) {
    append_parts(choice.parts, std::move(parts));
  } else if (choice.outcome) {
    const auto error = failure(choice);
    if (request_.stream) send(error ? writer_->fail(*error) : writer_->end(i, *choice.outcome));
    choice.ended = true;
    ++n_ended_;
  }
  return !choice.ended && (choice.outcome || !choice.new_text.empty() || !choice.reports.empty() ||
                           !choice.prompt_reports.empty());
}

std::vector<AnswerPart> Completion::parts_of(Choice& choice, std::string text) {
  std::vector<AnswerPart> parts;
  if (choice.parser) {
    parts = choice.parser->push(text);
    if (choice.parser->is_done() && !choice.outcome) {
      const std::lock_guard lock(mutex_);
      choice.is_enough = true;
      choice.cancel.request_stop();
    }
    return parts;
  }
  if (!text.empty()) parts.push_back({.text = std::move(text), .call = {}});
  return parts;
}

// What could not be written, for want of memory say.
void Completion::fail(const std::exception& error) {
  cancel();
  log_event("request_failed", {{"id", exchange_->request().id}, {"error", error.what()}});
  const HttpReply reply = error_reply(503, "unavailable_error",
                                      "The answer could not be written; see the server's log.");
  if (!request_.stream) return answer(reply);
  send(writer_->fail(reply));
  exchange_->end();
}

// Why there is no whole answer, though the client waits for one.
std::optional<HttpReply> Completion::failure(const Choice& choice) const {
  if (!choice.outcome->error && exchange_->gone().stop_requested()) return {};
  return failure_of(*choice.outcome, param_of(request_.form));
}

void Completion::finish() {
  on_gone_.reset();
  if (request_.stream) {
    send(writer_->finish(usage()));
    return exchange_->end();
  }
  for (const Choice& choice : choices_)
    if (auto error = failure(choice)) return answer(std::move(*error));
  std::vector<WholeAnswer> answers;
  for (const size_t i : best()) {
    Choice& choice = choices_[i];
    answers.push_back({.parts = std::move(choice.parts),
                       .scores = scored() ? choice.scores.json() : "null",
                       .outcome = &*choice.outcome});
  }
  answer({.body = writer_->whole(std::move(answers), usage())});
}

// Of every prompt's answers the n that are likeliest, by the mean of their tokens'
// log-probabilities.
std::vector<size_t> Completion::best() const {
  const auto n = static_cast<size_t>(request_.n), made = static_cast<size_t>(request_.best_of);
  const auto mean = [&](size_t i) {
    const size_t n_tokens = choices_[i].outcome->generation.tokens.size();
    return choices_[i].logprob / double(std::max<size_t>(1, n_tokens));
  };
  std::vector<size_t> all;
  for (size_t first = 0; first < choices_.size(); first += made) {
    std::vector<size_t> order(made);
    std::iota(order.begin(), order.end(), first);
    if (made > n)
      std::ranges::stable_sort(order, [&](size_t a, size_t b) { return mean(a) > mean(b); });
    all.insert(all.end(), order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n));
  }
  return all;
}

void Completion::answer(HttpReply reply) {
  if (reply.status >= 400 && request_.dialect == Dialect::kMessages)
    reply = messages_error(std::move(reply));
  context_.metrics.http_reply(reply.status);
  exchange_->reply(std::move(reply));
}

Usage Completion::usage() const {
  Usage usage;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Generation& g = choices_[i].outcome->generation;
    if (i % static_cast<size_t>(request_.best_of) == 0) {
      usage.n_prompt += g.prompt_tokens;
      usage.n_cached += g.cached_tokens;
    }
    usage.n_generated += static_cast<int64_t>(g.tokens.size());
  }
  return usage;
}

}  // namespace

std::chrono::steady_clock::time_point CompletionContext::deadline(
    std::chrono::steady_clock::time_point start, int64_t timeout_ms) const {
  const int64_t most = request_timeout.count();
  if (most > 0) timeout_ms = timeout_ms > 0 ? std::min(timeout_ms, most) : most;
  return timeout_ms > 0 ? start + std::chrono::milliseconds(timeout_ms)
                        : std::chrono::steady_clock::time_point::max();
}

void start_completion(CompletionContext& context, std::shared_ptr<Exchange> exchange,
                      ApiRequest request, std::vector<std::vector<int32_t>> prompts) {
  std::make_shared<Completion>(context, std::move(exchange), std::move(request))
      ->start(std::move(prompts));
}

}  // namespace ei::server
