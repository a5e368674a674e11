#include "apps/server/completion.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <iterator>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/server/answer_json.h"
#include "apps/server/log.h"
#include "apps/server/scores.h"
#include "ei/io/json.h"

namespace ei::server {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What a chunk has without text.
const OrderedJson kNothing = {{"delta", OrderedJson::object()}}, kNoText = {{"text", ""}};

// `object` with one more field, whose value is JSON text already.
std::string with(std::string object, std::string_view key, std::string_view value) {
  object.pop_back();
  return object.append(",\"").append(key).append("\":").append(value).append("}");
}

// One request on its way: all its choices, and what has come of them. The scheduler's thread leaves
// news and goes on; a renderer makes of it what is sent, a little at a time, and not faster than
// the client takes it.
class Completion : public std::enable_shared_from_this<Completion> {
 public:
  Completion(CompletionContext& context, std::shared_ptr<Exchange> exchange, ApiRequest request)
      : context_(context), exchange_(std::move(exchange)), request_(std::move(request)) {
    id_ = (request_.chat ? "chatcmpl-" : "cmpl-") + exchange_->request().id.substr(4);
    created_ = std::chrono::duration_cast<std::chrono::seconds>(
                   std::chrono::system_clock::now().time_since_epoch())
                   .count();
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
    // The scheduler's.
    int64_t n_tokens = 0;
    Clock::time_point last_token;
    News news;  // guarded by mutex_
    // The renderer's.
    std::vector<int32_t> prompt;  // to be sent as well
    bool is_read = false;         // all of it
    bool echoed = false;          // its text was sent
    std::string new_text;
    std::deque<TokenReport> reports, prompt_reports;  // not yet rendered
    int64_t text_offset = 0;                          // of the next token reported
    std::optional<AnswerParser> parser;               // of a chat whose answer is taken apart
    bool is_parsed = false;                           // all of it
    int64_t n_calls = 0;
    std::vector<AnswerPart> parts;  // of a whole answer, with its scores
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
  void send_parts(size_t i, std::vector<AnswerPart> parts, const std::string& scores);
  void send_end(size_t i);
  void finish();
  void fail(const std::exception& error);
  void begin_stream();
  void answer(HttpReply reply);
  bool scored() const { return request_.options.top_logprobs >= 0; }
  std::vector<size_t> best() const;
  std::optional<HttpReply> failure(const Choice& choice) const;
  void send(const std::string& json) { exchange_->write("data: " + json + "\n\n"); }

  OrderedJson envelope(bool chunk) const;
  std::string chunk(size_t i, OrderedJson content, const std::string& scores,
                    const OrderedJson& finish_reason) const;
  const char* finish_reason(const Choice& choice) const;
  std::string whole(size_t i, size_t index);
  OrderedJson usage() const;

  CompletionContext& context_;
  const std::shared_ptr<Exchange> exchange_;
  ApiRequest request_;
  std::string id_;
  int64_t created_ = 0;
  const Clock::time_point start_ = Clock::now();
  std::stop_source cancel_;
  std::optional<std::stop_callback<std::function<void()>>> on_gone_;
  std::deque<Choice> choices_;
  size_t n_ended_ = 0;

  std::mutex mutex_;       // guards news and these
  bool is_woken_ = false;  // render() is running or about to
  // This, while there is news for a client that has not taken what it was sent: nobody else may be
  // left to hold it.
  std::shared_ptr<Completion> stalled_;
};

void Completion::start(std::vector<std::vector<int32_t>> prompts) {
  int64_t timeout_ms = request_.timeout_ms;
  if (const int64_t most = context_.request_timeout.count(); most > 0)
    timeout_ms = timeout_ms > 0 ? std::min(timeout_ms, most) : most;
  AnswerFormat format = context_.format;
  if (request_.options.grammar) format.think_begin.clear();  // all of it is of the form
  const bool has_parts = !request_.parts.tools.empty() || !format.think_begin.empty();
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
      job.cancel = cancel_.get_token();
      if (timeout_ms > 0) job.deadline = start_ + std::chrono::milliseconds(timeout_ms);
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
      choices_.emplace_back(Scores(context_.tokenizer, request_.chat));
      if (request_.chat && has_parts) choices_.back().parser.emplace(format, request_.parts);
      if (request_.echo) choices_.back().prompt = prompt;
    }
  }
  on_gone_.emplace(exchange_->gone(), [cancel = cancel_]() mutable { cancel.request_stop(); });
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
  context_.metrics.http_reply(head.status);
  exchange_->begin(head);
  exchange_->keep_alive(": still working\n\n", context_.ping_interval);
  if (!request_.chat) return;
  const OrderedJson delta = {{"role", "assistant"}, {"content", ""}};
  for (size_t i = 0; i < choices_.size(); ++i) {
    const OrderedJson choice = {
        {"index", i}, {"delta", delta}, {"logprobs", nullptr}, {"finish_reason", nullptr}};
    send(with(dump(envelope(true)), "choices", "[" + dump(choice) + "]"));
  }
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
    cancel_.request_stop();
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
  if (news.progress)
    send(with(chunk(i, request_.chat ? kNothing : kNoText, "null", nullptr), "prompt_progress",
              dump(*news.progress)));
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
  Scores part(context_.tokenizer, request_.chat);
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
    send_parts(i, std::move(parts), scored() ? scores.json() : "null");
  } else if (is_any) {
    append_parts(choice.parts, std::move(parts));
  } else if (choice.outcome) {
    if (request_.stream) send_end(i);
    choice.ended = true;
    ++n_ended_;
  }
  return !choice.ended && (choice.outcome || !choice.new_text.empty() || !choice.reports.empty() ||
                           !choice.prompt_reports.empty());
}

std::vector<AnswerPart> Completion::parts_of(Choice& choice, std::string text) {
  if (choice.parser) return choice.parser->push(text);
  std::vector<AnswerPart> parts;
  if (!text.empty()) parts.push_back({.text = std::move(text), .call = {}});
  return parts;
}

// An event for each part, the scores with the last. What the parser keeps back needs none.
void Completion::send_parts(size_t i, std::vector<AnswerPart> parts, const std::string& scores) {
  std::vector<OrderedJson> contents;
  for (AnswerPart& part : parts) {
    if (!request_.chat) {
      contents.push_back({{"text", std::move(part.text)}});
    } else {
      append_deltas(contents, std::move(part), id_, i, choices_[i].n_calls);
    }
  }
  if (contents.empty() && scored()) contents.push_back(request_.chat ? kNothing : kNoText);
  for (OrderedJson& content : contents) {
    const bool is_last = &content == &contents.back();
    send(chunk(i, std::move(content), is_last ? scores : "null", nullptr));
  }
}

void Completion::send_end(size_t i) {
  const Choice& choice = choices_[i];
  if (const auto error = failure(choice)) return send(error->body);
  std::string last = chunk(i, request_.chat ? kNothing : kNoText, "null", finish_reason(choice));
  last = with(std::move(last), "timings", dump(timings_json(*choice.outcome)));
  send(with(std::move(last), "sparsity", dump(sparsity_json(request_.request, *choice.outcome))));
}

// What could not be written, for want of memory say.
void Completion::fail(const std::exception& error) {
  cancel_.request_stop();
  log_event("request_failed", {{"id", exchange_->request().id}, {"error", error.what()}});
  const HttpReply reply = error_reply(503, "unavailable_error",
                                      "The answer could not be written; see the server's log.");
  if (!request_.stream) return answer(reply);
  send(reply.body);
  exchange_->end();
}

// Why there is no whole answer, though the client waits for one.
std::optional<HttpReply> Completion::failure(const Choice& choice) const {
  if (choice.outcome->error) return error_reply(503, "unavailable_error", *choice.outcome->error);
  if (choice.outcome->generation.finish_reason == FinishReason::kCancelled &&
      !exchange_->gone().stop_requested())
    return error_reply(503, "unavailable_error",
                       "The request was cancelled: it timed out or the server shut down.");
  return {};
}

void Completion::finish() {
  on_gone_.reset();
  if (request_.stream) {
    if (request_.include_usage) {
      OrderedJson last = envelope(true);
      last["choices"] = OrderedJson::array();
      last["usage"] = usage();
      send(dump(last));
    }
    send("[DONE]");
    return exchange_->end();
  }
  for (const Choice& choice : choices_)
    if (auto error = failure(choice)) return answer(std::move(*error));
  std::string list;
  size_t index = 0;
  for (const size_t i : best()) list += (index > 0 ? "," : "") + whole(i, index), ++index;
  HttpReply out;
  out.body = with(dump(envelope(false)), "choices", "[" + list + "]");
  out.body = with(std::move(out.body), "usage", dump(usage()));
  out.body = with(std::move(out.body), "timings", dump(timings_json(*choices_[0].outcome)));
  out.body = with(std::move(out.body), "sparsity",
                  dump(sparsity_json(request_.request, *choices_[0].outcome)));
  answer(std::move(out));
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

// A choice of an answer that is not streamed.
std::string Completion::whole(size_t i, size_t index) {
  Choice& choice = choices_[i];
  OrderedJson json = {{"index", index}};
  if (request_.chat) {
    json["message"] = message_json(choice.parts, id_, i);
  } else {
    json["text"] = choice.parts.empty() ? "" : std::move(choice.parts[0].text);
  }
  json["finish_reason"] = finish_reason(choice);
  return with(dump(json), "logprobs", scored() ? choice.scores.json() : "null");
}

void Completion::answer(HttpReply reply) {
  context_.metrics.http_reply(reply.status);
  exchange_->reply(std::move(reply));
}

OrderedJson Completion::envelope(bool chunk) const {
  const char* object =
      request_.chat ? (chunk ? "chat.completion.chunk" : "chat.completion") : "text_completion";
  OrderedJson json = {
      {"id", id_}, {"object", object}, {"created", created_}, {"model", context_.model}};
  if (chunk && request_.include_usage) json["usage"] = nullptr;  // until the last
  return json;
}

// One event of a stream, with a choice whose scores are JSON text.
std::string Completion::chunk(size_t i, OrderedJson content, const std::string& scores,
                              const OrderedJson& finish_reason) const {
  OrderedJson choice = {{"index", i}};
  choice.update(content);
  choice["finish_reason"] = finish_reason;
  return with(dump(envelope(true)), "choices", "[" + with(dump(choice), "logprobs", scores) + "]");
}

OrderedJson Completion::usage() const {
  int64_t n_prompt = 0, n_cached = 0, n_generated = 0;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Generation& g = choices_[i].outcome->generation;
    if (i % static_cast<size_t>(request_.best_of) == 0) {
      n_prompt += g.prompt_tokens;
      n_cached += g.cached_tokens;
    }
    n_generated += static_cast<int64_t>(g.tokens.size());
  }
  return {{"prompt_tokens", n_prompt},
          {"completion_tokens", n_generated},
          {"total_tokens", n_prompt + n_generated},
          {"prompt_tokens_details", {{"cached_tokens", n_cached}}}};
}

const char* Completion::finish_reason(const Choice& choice) const {
  const auto is_call = [](const AnswerPart& part) { return part.kind == AnswerPart::Kind::kCall; };
  const FinishReason reason = choice.outcome->generation.finish_reason;
  const bool calls = choice.n_calls > 0 || std::ranges::any_of(choice.parts, is_call);
  return calls && reason == FinishReason::kStop ? "tool_calls" : reason_name(reason);
}

}  // namespace

void start_completion(CompletionContext& context, std::shared_ptr<Exchange> exchange,
                      ApiRequest request, std::vector<std::vector<int32_t>> prompts) {
  std::make_shared<Completion>(context, std::move(exchange), std::move(request))
      ->start(std::move(prompts));
}

}  // namespace ei::server
