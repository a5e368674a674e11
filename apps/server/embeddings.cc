#include "apps/server/embeddings.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <cmath>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>

#include "apps/server/answer_json.h"
#include "apps/server/error_replies.h"
#include "apps/server/log.h"

namespace ei::server {
namespace {

using Clock = std::chrono::steady_clock;

// Inputs that wait or are read at the same time: one request leaves room for others'.
constexpr size_t kMostJobs = 16;

// The first n_dims numbers (0: all), at length 1; zeros stay zeros.
std::vector<float> unit(std::vector<float> vector, int64_t n_dims) {
  if (n_dims > 0) vector.resize(static_cast<size_t>(n_dims));
  double squares = 0;
  for (const float x : vector) squares += double(x) * double(x);
  if (squares > 0)
    for (float& x : vector) x = static_cast<float>(x / std::sqrt(squares));
  return vector;
}

std::string base64(std::span<const float> values) {
  const auto bytes = std::as_bytes(values);
  std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');  // and the end of a C string
  text.resize(static_cast<size_t>(EVP_EncodeBlock(
      reinterpret_cast<unsigned char*>(text.data()),
      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()))));
  return text;
}

// Lives until the last of its jobs has ended.
class Embeddings : public std::enable_shared_from_this<Embeddings> {
 public:
  Embeddings(CompletionContext& context, std::shared_ptr<Exchange> exchange,
             EmbeddingRequest request, std::vector<std::vector<int32_t>> inputs)
      : context_(context),
        exchange_(std::move(exchange)),
        request_(std::move(request)),
        inputs_(std::move(inputs)),
        vectors_(inputs_.size()) {}

  void start() {
    const std::lock_guard lock(mutex_);
    std::vector<Job> jobs;
    for (size_t i = 0; i < std::min(inputs_.size(), kMostJobs); ++i) jobs.push_back(job(i));
    on_gone_.emplace(exchange_->gone(), [this] { cancel_.request_stop(); });
    n_submitted_ = jobs.size();
    context_.scheduler.submit(std::move(jobs));
  }

 private:
  Job job(size_t i) {
    Job job;
    job.request = request_.request;
    job.request.tokens = std::move(inputs_[i]);
    job.options.pooling = request_.pooling;
    job.cancel = cancel_.get_token();
    job.deadline = context_.deadline(start_, request_.timeout_ms);
    job.on_end = [self = shared_from_this(), i](Outcome outcome) {
      self->on_end(i, std::move(outcome));
    };
    return job;
  }

  // The scheduler's thread.
  void on_end(size_t i, Outcome outcome) {
    context_.metrics.ended(outcome, std::chrono::duration<double>(Clock::now() - start_).count(),
                           request_.request);
    log_outcome(exchange_->request().id, outcome);
    context_.renderers.post(
        [self = shared_from_this(), i, outcome = std::move(outcome)] { self->go_on(i, outcome); });
  }

  // A renderer's: the next input, or the answer.
  void go_on(size_t i, const Outcome& outcome) {
    const std::lock_guard lock(mutex_);
    ++n_ended_;
    n_tokens_ += outcome.generation.prompt_tokens;
    vectors_[i] = unit(outcome.generation.hidden, request_.dimensions);
    if (auto failure = failure_of(outcome, "input")) fail(std::move(*failure));
    try {
      if (!failure_ && n_submitted_ < inputs_.size()) {
        context_.scheduler.submit(job(n_submitted_));
        ++n_submitted_;
      }
    } catch (const Refusal& refusal) {
      fail(to_reply(refusal, "input"));
    } catch (const Error& error) {
      fail(error_reply(400, "invalid_request_error", error.what(), "input"));
    } catch (const std::exception& error) {
      fail(error_reply(503, "unavailable_error", error.what()));
    }
    if (n_ended_ == n_submitted_ && (failure_ || n_ended_ == inputs_.size())) finish();
  }

  void fail(HttpReply reply) {
    if (!failure_) failure_ = std::move(reply);
    cancel_.request_stop();
  }

  void finish() {
    on_gone_.reset();
    HttpReply reply = failure_ ? std::move(*failure_) : HttpReply{.body = body()};
    context_.metrics.http_reply(reply.status);
    exchange_->reply(std::move(reply));
  }

  std::string body() const {
    std::string data;
    for (size_t i = 0; i < vectors_.size(); ++i) {
      data +=
          fmt::format(R"({}{{"object":"embedding","index":{},"embedding":)", i > 0 ? "," : "", i);
      data += request_.base64 ? fmt::format(R"("{}"}})", base64(vectors_[i]))
                              : fmt::format("[{}]}}", fmt::join(vectors_[i], ","));
    }
    return fmt::format(
        R"({{"object":"list","data":[{}],"model":{},"usage":{{"prompt_tokens":{},"total_tokens":{}}}}})",
        data, dump(context_.model), n_tokens_, n_tokens_);
  }

  CompletionContext& context_;
  const std::shared_ptr<Exchange> exchange_;
  const EmbeddingRequest request_;
  const Clock::time_point start_ = Clock::now();
  std::stop_source cancel_;
  std::vector<std::vector<int32_t>> inputs_;  // until they are submitted
  std::optional<std::stop_callback<std::function<void()>>> on_gone_;

  std::mutex mutex_;  // guards what follows
  std::vector<std::vector<float>> vectors_;
  size_t n_submitted_ = 0, n_ended_ = 0;
  int64_t n_tokens_ = 0;
  std::optional<HttpReply> failure_;
};

}  // namespace

void start_embeddings(CompletionContext& context, std::shared_ptr<Exchange> exchange,
                      EmbeddingRequest request, std::vector<std::vector<int32_t>> inputs) {
  std::make_shared<Embeddings>(context, std::move(exchange), std::move(request), std::move(inputs))
      ->start();
}

}  // namespace ei::server
