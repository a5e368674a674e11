#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/server/completion.h"
#include "apps/server/http.h"
#include "apps/server/metrics.h"
#include "apps/server/request.h"
#include "apps/server/tools.h"
#include "apps/server/workers.h"
#include "ei/engine/engine.h"
#include "ei/engine/scheduler.h"

namespace ei::server {

struct ApiOptions {
  std::string model_name;                  // in replies
  std::vector<std::string> api_keys;       // none: everybody may
  std::vector<std::string> cors_origins;   // pages elsewhere that may call; "*": all
  std::vector<std::string> allowed_hosts;  // beside localhost and IP addresses; "*": all
  std::chrono::milliseconds ping_interval{15000};
  std::chrono::milliseconds request_timeout{0};
  std::string model_path;  // is nobody's business: taken out of what errors say
};

// The endpoints, in OpenAI's form where it has one. Answers 503 until a model is there. What can be
// answered by a request's head is, on the I/O thread; requests with a body are worked on by threads
// that have nothing to do with I/O.
class Api final : public HttpHandler {
 public:
  explicit Api(ApiOptions options);
  ~Api() override;

  // Starts to serve. `defaults` without sampling: the checkpoint's is used.
  void serve(Engine& engine, const SchedulerOptions& options, RequestDefaults defaults);
  Scheduler& scheduler() { return *scheduler_; }

  void on_head(Exchange& exchange) override;
  void on_request(std::shared_ptr<Exchange> exchange) override;
  void on_refusal(const HttpRefusal& refusal) override;  // logs and counts it
  HttpReply in_form_of(std::string_view path, HttpReply error) const override;

 private:
  using Held = std::shared_ptr<const std::string>;  // a body: to be dropped once it is parsed
  struct Endpoint;
  static const Endpoint kEndpoints[];

  template <class F>
  void answer(Exchange& exchange, F f);
  std::optional<HttpReply> from_head(const HttpRequest& request) const;
  std::optional<HttpReply> refuse(const HttpRequest& request) const;
  Headers cors(const HttpRequest& request) const;
  bool allowed_origin(const HttpRequest& request) const;
  bool authorized(const HttpRequest& request) const;
  std::string without_path(std::string text) const;

  HttpReply health() const;
  HttpReply models(const std::string& id) const;
  void check_bytes(size_t n_bytes, const char* param) const;
  std::string rendered(const Conversation& conversation) const;
  static ChatOptions options_of(const Conversation& conversation);
  std::vector<int32_t> encode(const std::string& text, bool add_special_tokens) const;
  std::vector<int32_t> encode(const Conversation& conversation) const;
  std::optional<HttpReply> tokenize(const std::shared_ptr<Exchange>& exchange, Held body);
  std::optional<HttpReply> detokenize(const std::shared_ptr<Exchange>& exchange, Held body);
  std::optional<HttpReply> apply_template(const std::shared_ptr<Exchange>& exchange, Held body);
  std::optional<HttpReply> count_tokens(const std::shared_ptr<Exchange>& exchange, Held body);
  template <auto parse>  // of a dialect that asks for chats
  std::optional<HttpReply> chat(const std::shared_ptr<Exchange>& exchange, Held body);
  std::optional<HttpReply> completion(const std::shared_ptr<Exchange>& exchange, Held body);
  std::optional<HttpReply> embeddings(const std::shared_ptr<Exchange>& exchange, Held body);
  std::vector<std::vector<int32_t>> encode(std::vector<Prompt> prompts, bool add_special_tokens,
                                           const char* param) const;
  static void tell_unknown(Exchange& exchange, const std::vector<std::string>& fields);
  void start(const std::shared_ptr<Exchange>& exchange, ApiRequest request,
             std::vector<std::vector<int32_t>> prompts);

  const ApiOptions options_;
  Metrics metrics_;
  RequestDefaults defaults_;
  Engine* engine_ = nullptr;
  ModelInfo info_;
  int64_t created_ = 0;
  size_t max_token_bytes_ = 0;
  AnswerFormat format_;
  std::optional<Grammars> grammars_;
  Workers readers_, renderers_;  // outlive the scheduler, which wakes them
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<CompletionContext> completions_;
  std::atomic<bool> ready_ = false;
};

}  // namespace ei::server
