#include <algorithm>

#include "apps/server/answer_json.h"
#include "apps/server/answer_writer.h"

namespace ei::server {
namespace {

// What a chunk has without text.
const OrderedJson kNothing = {{"delta", OrderedJson::object()}}, kNoText = {{"text", ""}};

// Of /v1/chat/completions and /v1/completions.
class OpenaiWriter final : public AnswerWriter {
 public:
  OpenaiWriter(AnswerHead head, const ApiRequest& request)
      : head_(std::move(head)), request_(request), is_chat_(request.dialect == Dialect::kChat) {
    head_.id = (is_chat_ ? "chatcmpl-" : "cmpl-") + head_.id;
  }

  std::string begin(size_t n_answers, int64_t) override {
    n_calls_.resize(n_answers);
    if (!is_chat_) return {};
    std::string out;
    const OrderedJson delta = {{"delta", {{"role", "assistant"}, {"content", ""}}}};
    for (size_t i = 0; i < n_answers; ++i) out += chunk(i, delta, "null", nullptr);
    return out;
  }

  std::string progress(size_t i, const OrderedJson& progress) override {
    return data(with(choice(i, nothing(), "null", nullptr), "prompt_progress", dump(progress)));
  }

  // An event for each part, the scores with the last. What the parser keeps back needs none.
  std::string add(size_t i, std::vector<AnswerPart> parts, const std::string& scores) override {
    std::vector<OrderedJson> contents;
    for (AnswerPart& part : parts) {
      if (!is_chat_) {
        contents.push_back({{"text", std::move(part.text)}});
      } else {
        append_deltas(contents, std::move(part), head_.id, i, n_calls_[i]);
      }
    }
    if (contents.empty() && scores != "null") contents.push_back(nothing());
    std::string out;
    for (OrderedJson& content : contents) {
      const bool is_last = &content == &contents.back();
      out += chunk(i, std::move(content), is_last ? scores : "null", nullptr);
    }
    return out;
  }

  std::string end(size_t i, const Outcome& outcome) override {
    std::string last = choice(i, nothing(), "null", finish_reason(outcome, n_calls_[i] > 0));
    return data(with_measures(std::move(last), request_.request, outcome));
  }

  std::string fail(const HttpReply& error) override { return data(error.body); }

  std::string finish(const Usage& usage) override {
    std::string out;
    if (request_.include_usage) {
      OrderedJson last = envelope(true);
      last["choices"] = OrderedJson::array();
      last["usage"] = usage_json(usage);
      out = data(dump(last));
    }
    return out + data("[DONE]");
  }

  std::string whole(std::vector<WholeAnswer> answers, const Usage& usage) override {
    std::string list;
    for (size_t i = 0; i < answers.size(); ++i) {
      WholeAnswer& answer = answers[i];
      OrderedJson json = {{"index", i}};
      if (is_chat_) {
        json["message"] = message_json(answer.parts, head_.id, i);
      } else {
        json["text"] = answer.parts.empty() ? "" : std::move(answer.parts[0].text);
      }
      const bool has_calls = std::ranges::find(answer.parts, AnswerPart::Kind::kCall,
                                               &AnswerPart::kind) != answer.parts.end();
      json["finish_reason"] = finish_reason(*answer.outcome, has_calls);
      list += (i > 0 ? "," : "") + with(dump(json), "logprobs", answer.scores);
    }
    std::string body = with(dump(envelope(false)), "choices", "[" + list + "]");
    body = with(std::move(body), "usage", dump(usage_json(usage)));
    return with_measures(std::move(body), request_.request, *answers[0].outcome);
  }

 private:
  const OrderedJson& nothing() const { return is_chat_ ? kNothing : kNoText; }

  static std::string data(const std::string& json) { return "data: " + json + "\n\n"; }

  static const char* finish_reason(const Outcome& outcome, bool has_calls) {
    const FinishReason reason = outcome.generation.finish_reason;
    return has_calls && reason == FinishReason::kStop ? "tool_calls" : reason_name(reason);
  }

  OrderedJson envelope(bool is_chunk) const {
    const char* object =
        is_chat_ ? (is_chunk ? "chat.completion.chunk" : "chat.completion") : "text_completion";
    OrderedJson json = {
        {"id", head_.id}, {"object", object}, {"created", head_.created}, {"model", head_.model}};
    if (is_chunk && request_.include_usage) json["usage"] = nullptr;  // until the last
    return json;
  }

  // What one event says of an answer whose scores are JSON text.
  std::string choice(size_t i, const OrderedJson& content, const std::string& scores,
                     const OrderedJson& finish_reason) const {
    OrderedJson choice = {{"index", i}};
    choice.update(content);
    choice["finish_reason"] = finish_reason;
    return with(dump(envelope(true)), "choices",
                "[" + with(dump(choice), "logprobs", scores) + "]");
  }
  std::string chunk(size_t i, const OrderedJson& content, const std::string& scores,
                    const OrderedJson& finish_reason) const {
    return data(choice(i, content, scores, finish_reason));
  }

  static OrderedJson usage_json(const Usage& usage) {
    return {{"prompt_tokens", usage.n_prompt},
            {"completion_tokens", usage.n_generated},
            {"total_tokens", usage.n_prompt + usage.n_generated},
            {"prompt_tokens_details", {{"cached_tokens", usage.n_cached}}}};
  }

  AnswerHead head_;
  const ApiRequest& request_;
  const bool is_chat_;
  std::vector<int64_t> n_calls_;
};

}  // namespace

std::unique_ptr<AnswerWriter> make_writer(AnswerHead head, const ApiRequest& request) {
  switch (request.dialect) {
    case Dialect::kMessages:
      return make_messages_writer(std::move(head), request);
    case Dialect::kResponses:
      return make_responses_writer(std::move(head), request);
    default:
      return make_openai_writer(std::move(head), request);
  }
}

std::unique_ptr<AnswerWriter> make_openai_writer(AnswerHead head, const ApiRequest& request) {
  return std::make_unique<OpenaiWriter>(std::move(head), request);
}

}  // namespace ei::server
