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
};

// The endpoints, in OpenAI's form where it has one. Answers 503 until a model is there.
class Api {
 public:
  explicit Api(ApiOptions options);
  ~Api();

  // Starts to serve. `defaults` without sampling: the checkpoint's is used.
  void serve(Engine& engine, const SchedulerOptions& options, RequestDefaults defaults);
  Scheduler& scheduler() { return *scheduler_; }

  // May be called from several threads.
  void handle(std::shared_ptr<Exchange> exchange);
  // Logs and counts what never came to handle().
  void refused(const HttpRefusal& refusal);

 private:
  std::optional<HttpReply> refuse(const HttpRequest& request) const;
  HttpReply route(const std::shared_ptr<Exchange>& exchange);
  Headers cors(const HttpRequest& request) const;
  bool allowed_origin(const HttpRequest& request) const;
  bool authorized(const HttpRequest& request) const;

  HttpReply health() const;
  HttpReply models(const std::string& id) const;
  std::vector<int32_t> encode(const Conversation& conversation) const;
  HttpReply tokenize(const HttpRequest& request) const;
  HttpReply detokenize(const HttpRequest& request) const;
  HttpReply apply_template(const HttpRequest& request) const;
  void complete(const std::shared_ptr<Exchange>& exchange, bool chat);

  const ApiOptions options_;
  Metrics metrics_;
  RequestDefaults defaults_;
  Engine* engine_ = nullptr;
  ModelInfo info_;
  int64_t created_ = 0;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<CompletionContext> completions_;
  std::atomic<bool> ready_ = false;
};

}  // namespace ei::server
