#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "apps/server/http.h"
#include "apps/server/metrics.h"
#include "apps/server/request.h"
#include "apps/server/workers.h"
#include "ei/engine/scheduler.h"
#include "ei/text/tokenizer.h"

namespace ei::server {

// What answers need to know of the server. Outlives them.
struct CompletionContext {
  Scheduler& scheduler;
  const Tokenizer& tokenizer;
  Metrics& metrics;
  Workers& renderers;   // that write what is sent
  std::string model;    // its name in replies
  AnswerFormat format;  // that the model writes calls and thoughts in
  std::chrono::milliseconds ping_interval{15000};
  std::chrono::milliseconds request_timeout{0};  // from request to end; 0: none

  // By when a request must have ended that asks for `timeout_ms` itself (0: it does not).
  std::chrono::steady_clock::time_point deadline(std::chrono::steady_clock::time_point start,
                                                 int64_t timeout_ms) const;
};

// Answers a request once its prompts are tokens: `prompts` has one for a chat. Returns at once;
// what follows is sent as it comes. Throws ApiError, Refusal or Error before anything is sent.
void start_completion(CompletionContext& context, std::shared_ptr<Exchange> exchange,
                      ApiRequest request, std::vector<std::vector<int32_t>> prompts);

}  // namespace ei::server
