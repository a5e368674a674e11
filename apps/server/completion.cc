#include "apps/server/completion.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "apps/server/log.h"
#include "ei/io/json.h"

namespace ei::server {
namespace {

using Clock = std::chrono::steady_clock;

std::string dump(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

const char* reason_name(FinishReason reason) {
  return reason == FinishReason::kLength ? "length" : "stop";
}

// One request on its way: all its choices, and what has come of them. The scheduler's callbacks
// come from one thread, after start() has set everything up.
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
  struct Choice {
    std::vector<int32_t> prompt;
    std::string text;
    int64_t text_offset = 0;  // of the next token reported
    std::vector<TokenReport> reports, prompt_reports;
    Outcome outcome;
    bool echoed = false;  // the prompt was sent
    int64_t n_tokens = 0;
    Clock::time_point last_token;
  };

  void on_prefill(size_t i, int64_t done, int64_t total, int64_t cached, double ms);
  void on_delta(size_t i, Delta delta);
  void on_end(size_t i, Outcome outcome);
  void finish();
  void begin_stream();
  void send_echo(size_t i);
  void answer(HttpReply reply);
  std::optional<HttpReply> failure(const Choice& choice) const;
  void send(const OrderedJson& json) { exchange_->write("data: " + dump(json) + "\n\n"); }

  OrderedJson envelope(bool chunk) const;
  OrderedJson chunk(OrderedJson choice) const;
  OrderedJson chunk_choice(size_t i, const std::string& text, OrderedJson logprobs,
                           OrderedJson finish_reason) const;
  OrderedJson usage() const;
  OrderedJson timings(const Choice& choice) const;
  OrderedJson sparsity(const Choice& choice) const;
  OrderedJson logprobs(Choice& choice, std::vector<TokenReport> reports, bool prompt) const;
  OrderedJson chat_logprobs(const std::vector<TokenReport>& reports) const;
  OrderedJson token_json(const TokenLogprob& token) const;
  std::string token_text(int32_t id) const { return context_.tokenizer.decode({{id}}, false); }
  void log(const Choice& choice) const;

  CompletionContext& context_;
  const std::shared_ptr<Exchange> exchange_;
  ApiRequest request_;
  std::string id_;
  int64_t created_ = 0;
  const Clock::time_point start_ = Clock::now();
  std::stop_source cancel_;
  std::optional<std::stop_callback<std::function<void()>>> on_gone_;
  std::vector<Choice> choices_;
  size_t n_ended_ = 0;
};

void Completion::start(std::vector<std::vector<int32_t>> prompts) {
  int64_t timeout_ms = request_.timeout_ms;
  if (const int64_t most = context_.request_timeout.count(); most > 0)
    timeout_ms = timeout_ms > 0 ? std::min(timeout_ms, most) : most;
  std::vector<Job> jobs;
  for (const auto& prompt : prompts) {
    for (int64_t k = 0; k < request_.n; ++k) {
      const size_t i = choices_.size();
      Job job;
      job.request = request_.request;
      job.request.tokens = prompt;
      job.request.sampling->seed += static_cast<uint64_t>(k);
      job.options = request_.options;
      job.cancel = cancel_.get_token();
      if (timeout_ms > 0) job.deadline = start_ + std::chrono::milliseconds(timeout_ms);
      // Callbacks hold the completion, which lives until the last of them was called.
      const auto self = shared_from_this();
      job.on_prefill = [self, i](int64_t done, int64_t total, int64_t cached, double ms) {
        self->on_prefill(i, done, total, cached, ms);
      };
      job.on_delta = [self, i](Delta delta) { self->on_delta(i, std::move(delta)); };
      job.on_end = [self, i](Outcome outcome) { self->on_end(i, std::move(outcome)); };
      jobs.push_back(std::move(job));
      choices_.emplace_back();
      choices_.back().prompt =
          request_.echo || request_.options.score_prompt ? prompt : std::vector<int32_t>();
    }
  }
  on_gone_.emplace(exchange_->gone(), [cancel = cancel_]() mutable { cancel.request_stop(); });
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
  for (size_t i = 0; i < choices_.size(); ++i) {
    send(chunk({{"index", i},
                {"delta", {{"role", "assistant"}, {"content", ""}}},
                {"logprobs", nullptr},
                {"finish_reason", nullptr}}));
  }
}

void Completion::on_prefill(size_t i, int64_t done, int64_t total, int64_t cached, double ms) {
  if (!request_.stream || !request_.return_progress) return;
  OrderedJson progress = chunk(chunk_choice(i, "", nullptr, nullptr));
  progress["prompt_progress"] = {
      {"total", total}, {"cache", cached}, {"processed", done}, {"time_ms", ms}};
  send(progress);
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
  for (TokenReport& report : delta.prompt_reports)
    choice.prompt_reports.push_back(std::move(report));
  if (!request_.stream) {
    choice.text += delta.text;
    for (TokenReport& report : delta.reports) choice.reports.push_back(std::move(report));
    return;
  }
  if (delta.n_tokens > 0) send_echo(i);
  if (delta.text.empty() && delta.reports.empty()) return;
  choice.text += delta.text;
  send(chunk(
      chunk_choice(i, delta.text, logprobs(choice, std::move(delta.reports), false), nullptr)));
}

// The prompt, once, after all of it was read.
void Completion::send_echo(size_t i) {
  Choice& choice = choices_[i];
  if (!request_.echo || std::exchange(choice.echoed, true)) return;
  const std::string text = context_.tokenizer.decode(choice.prompt, true);
  send(chunk(
      chunk_choice(i, text, logprobs(choice, std::move(choice.prompt_reports), true), nullptr)));
}

// Why there is no whole answer, though the client waits for one.
std::optional<HttpReply> Completion::failure(const Choice& choice) const {
  if (choice.outcome.error) return error_reply(503, "unavailable_error", *choice.outcome.error);
  if (choice.outcome.generation.finish_reason == FinishReason::kCancelled &&
      !exchange_->gone().stop_requested())
    return error_reply(503, "unavailable_error",
                       "The request was cancelled: it timed out or the server shut down.");
  return {};
}

void Completion::on_end(size_t i, Outcome outcome) {
  Choice& choice = choices_[i];
  choice.outcome = std::move(outcome);
  context_.metrics.ended(choice.outcome, seconds_since(start_), request_.request);
  log(choice);
  if (request_.stream) {
    if (const auto error = failure(choice)) {
      exchange_->write("data: " + error->body + "\n\n");
    } else {
      send_echo(i);
      OrderedJson last =
          chunk(chunk_choice(i, "", nullptr, reason_name(choice.outcome.generation.finish_reason)));
      last["timings"] = timings(choice);
      last["sparsity"] = sparsity(choice);
      send(last);
    }
  }
  if (++n_ended_ == choices_.size()) finish();
}

void Completion::finish() {
  on_gone_.reset();
  if (request_.stream) {
    if (request_.include_usage) {
      OrderedJson last = envelope(true);
      last["choices"] = OrderedJson::array();
      last["usage"] = usage();
      send(last);
    }
    exchange_->write("data: [DONE]\n\n");
    return exchange_->end();
  }
  OrderedJson reply = envelope(false);
  OrderedJson list = OrderedJson::array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    if (auto error = failure(choice)) return answer(std::move(*error));
    OrderedJson finish_reason = reason_name(choice.outcome.generation.finish_reason);
    if (request_.chat) {
      const bool wanted = request_.options.top_logprobs >= 0;
      list.push_back(
          {{"index", i},
           {"message", {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}}},
           {"logprobs", wanted ? chat_logprobs(choice.reports) : OrderedJson(nullptr)},
           {"finish_reason", finish_reason}});
    } else {
      std::vector<TokenReport> reports;
      OrderedJson scored = nullptr;
      std::string text = choice.text;
      if (request_.echo) text = context_.tokenizer.decode(choice.prompt, true) + text;
      if (request_.options.top_logprobs >= 0) {
        scored = request_.echo ? logprobs(choice, std::move(choice.prompt_reports), true)
                               : OrderedJson::object();
        const OrderedJson more = logprobs(choice, std::move(choice.reports), false);
        for (const char* key : {"tokens", "token_logprobs", "top_logprobs", "text_offset"})
          for (const OrderedJson& x : more[key]) scored[key].push_back(x);
      }
      list.push_back(
          {{"index", i}, {"text", text}, {"logprobs", scored}, {"finish_reason", finish_reason}});
    }
  }
  reply["choices"] = std::move(list);
  reply["usage"] = usage();
  reply["timings"] = timings(choices_[0]);
  reply["sparsity"] = sparsity(choices_[0]);
  HttpReply out;
  out.body = dump(reply);
  answer(std::move(out));
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

// array(): whether {choice} would be a list of one or the choice itself is up to the compiler.
OrderedJson Completion::chunk(OrderedJson choice) const {
  OrderedJson json = envelope(true);
  json["choices"] = OrderedJson::array({std::move(choice)});
  return json;
}

OrderedJson Completion::chunk_choice(size_t i, const std::string& text, OrderedJson logprobs,
                                     OrderedJson finish_reason) const {
  if (!request_.chat)
    return {{"index", i},
            {"text", text},
            {"logprobs", std::move(logprobs)},
            {"finish_reason", std::move(finish_reason)}};
  return {{"index", i},
          {"delta", text.empty() ? OrderedJson::object() : OrderedJson{{"content", text}}},
          {"logprobs", std::move(logprobs)},
          {"finish_reason", std::move(finish_reason)}};
}

OrderedJson Completion::usage() const {
  int64_t n_prompt = 0, n_cached = 0, n_generated = 0;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Generation& g = choices_[i].outcome.generation;
    if (i % static_cast<size_t>(request_.n) == 0) {
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

OrderedJson Completion::timings(const Choice& choice) const {
  const Generation& g = choice.outcome.generation;
  return {{"queue_ms", choice.outcome.queue_ms},
          {"cache_n", g.cached_tokens},
          {"prompt_n", g.prompt_tokens - g.cached_tokens},
          {"prompt_ms", g.timings.prefill_ms},
          {"prompt_per_second", g.timings.prefill_tps},
          {"predicted_n", g.tokens.size()},
          {"predicted_ms", g.timings.decode_ms},
          {"predicted_per_second", g.timings.decode_tps}};
}

OrderedJson Completion::sparsity(const Choice& choice) const {
  const Generation& g = choice.outcome.generation;
  return {{"prefill", request_.request.prefill.is_dense() ? "dense" : "entropy"},
          {"decode", request_.request.decode.is_full() ? "full" : "latent"},
          {"density", g.sparsity.density},
          {"kept_blocks_mean", g.sparsity.kept_blocks_mean},
          {"rigid_heads", g.sparsity.rigid_heads},
          {"dynamic_heads", g.sparsity.dynamic_heads},
          {"kv_bytes", g.kv.bytes},
          {"kv_bytes_full", g.kv.bytes_full},
          {"compressed", g.kv.compressed}};
}

OrderedJson Completion::token_json(const TokenLogprob& token) const {
  const std::string bytes = context_.tokenizer.token_bytes(token.token);
  OrderedJson list = OrderedJson::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return {{"token", token_text(token.token)}, {"logprob", token.logprob}, {"bytes", list}};
}

OrderedJson Completion::chat_logprobs(const std::vector<TokenReport>& reports) const {
  OrderedJson content = OrderedJson::array();
  for (const TokenReport& report : reports) {
    OrderedJson entry = token_json(report.chosen);
    entry["top_logprobs"] = OrderedJson::array();
    for (const TokenLogprob& t : report.top) entry["top_logprobs"].push_back(token_json(t));
    content.push_back(std::move(entry));
  }
  return {{"content", content}, {"refusal", nullptr}};
}

// In the form of the API asked. Offsets count characters, as clients' strings do. `prompt`: of the
// prompt's tokens, the first of which has none.
OrderedJson Completion::logprobs(Choice& choice, std::vector<TokenReport> reports,
                                 bool prompt) const {
  if (request_.options.top_logprobs < 0) return nullptr;
  if (request_.chat) return chat_logprobs(reports);
  OrderedJson tokens = OrderedJson::array(), scores = OrderedJson::array(),
              tops = OrderedJson::array(), offsets = OrderedJson::array();
  int64_t& offset = choice.text_offset;
  if (prompt) offset = 0;
  const auto add = [&](int32_t id, OrderedJson score, OrderedJson top) {
    const std::string text = token_text(id);
    tokens.push_back(text);
    scores.push_back(std::move(score));
    tops.push_back(std::move(top));
    offsets.push_back(offset);
    if (!context_.tokenizer.is_special(id))
      offset += std::ranges::count_if(context_.tokenizer.token_bytes(id),
                                      [](char c) { return (c & 0xC0) != 0x80; });
  };
  if (prompt && !choice.prompt.empty()) add(choice.prompt[0], nullptr, nullptr);
  for (const TokenReport& report : reports) {
    OrderedJson top = OrderedJson::object();
    for (const TokenLogprob& t : report.top) {
      const std::string text = token_text(t.token);
      if (!top.contains(text)) top[text] = t.logprob;  // two ids may have one text: the likelier
    }
    const std::string chosen = token_text(report.chosen.token);
    if (!top.contains(chosen)) top[chosen] = report.chosen.logprob;
    add(report.chosen.token, report.chosen.logprob, std::move(top));
  }
  return {{"tokens", tokens},
          {"token_logprobs", scores},
          {"top_logprobs", tops},
          {"text_offset", offsets}};
}

void Completion::log(const Choice& choice) const {
  const Generation& g = choice.outcome.generation;
  if (choice.outcome.error) {
    log_event("request_failed",
              {{"id", exchange_->request().id}, {"error", *choice.outcome.error}});
    return;
  }
  OrderedJson event = {
      {"id", exchange_->request().id},
      {"finish",
       g.finish_reason == FinishReason::kCancelled ? "cancelled" : reason_name(g.finish_reason)},
      {"prompt_tokens", g.prompt_tokens},
      {"cached_tokens", g.cached_tokens},
      {"generated_tokens", g.tokens.size()},
      {"queue_ms", int64_t(choice.outcome.queue_ms)},
      {"prefill_ms", int64_t(g.timings.prefill_ms)},
      {"decode_ms", int64_t(g.timings.decode_ms)},
      {"density", g.sparsity.density},
      {"kv_bytes", g.kv.bytes}};
  if (!choice.outcome.lost_prefix.empty()) event["prefix_cache"] = choice.outcome.lost_prefix;
  log_event("request_done", std::move(event));
}

}  // namespace

void start_completion(CompletionContext& context, std::shared_ptr<Exchange> exchange,
                      ApiRequest request, std::vector<std::vector<int32_t>> prompts) {
  std::make_shared<Completion>(context, std::move(exchange), std::move(request))
      ->start(std::move(prompts));
}

}  // namespace ei::server
