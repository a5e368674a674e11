#include <utility>

#include "apps/server/answer_json.h"
#include "apps/server/answer_writer.h"
#include "apps/server/error_replies.h"

namespace ei::server {
namespace {

// Of /v1/messages: an answer is a list of blocks.
class MessagesWriter final : public AnswerWriter {
 public:
  MessagesWriter(AnswerHead head, const ApiRequest& request)
      : head_(std::move(head)), request_(request) {
    head_.id = "msg_" + head_.id;
  }

  std::string ping() const override { return server_event("ping", R"({"type":"ping"})"); }

  std::string begin(size_t, int64_t n_prompt) override {
    OrderedJson message = envelope();
    message["content"] = OrderedJson::array();
    message["stop_reason"] = message["stop_sequence"] = nullptr;
    message["usage"] = usage_json({.n_prompt = n_prompt});
    return server_event("message_start", dump({{"type", "message_start"}, {"message", message}})) +
           ping();
  }

  std::string add(size_t, std::vector<AnswerPart> parts, const std::string&) override {
    using Kind = AnswerPart::Kind;
    std::string out;
    for (AnswerPart& part : parts) {
      if (part.kind == Kind::kCall) {
        out += start_block(Kind::kCall, {{"type", "tool_use"},
                                         {"id", call_id(head_.id, 0, n_calls_++)},
                                         {"name", part.call.name},
                                         {"input", OrderedJson::object()}});
        part.text = std::move(part.call.arguments);
      } else if (part.kind != Kind::kArguments && (!is_open_ || kind_ != part.kind)) {
        out +=
            start_block(part.kind, part.kind == Kind::kText ? text_block("") : thinking_block(""));
      }
      if (part.text.empty()) continue;
      const char* type = kind_ == Kind::kText        ? "text_delta"
                         : kind_ == Kind::kReasoning ? "thinking_delta"
                                                     : "input_json_delta";
      const char* key = kind_ == Kind::kText        ? "text"
                        : kind_ == Kind::kReasoning ? "thinking"
                                                    : "partial_json";
      out += server_event("content_block_delta",
                          dump({{"type", "content_block_delta"},
                                {"index", index_},
                                {"delta", {{"type", type}, {key, part.text}}}}));
    }
    return out;
  }

  std::string end(size_t, const Outcome& outcome) override {
    const OrderedJson delta = {{"type", "message_delta"},
                               {"delta", stop_json(outcome, n_calls_ > 0)},
                               {"usage", usage_json(usage_of(outcome))}};
    is_whole_ = true;
    return stop_block() +
           server_event("message_delta", with_measures(dump(delta), request_.request, outcome));
  }

  std::string fail(const HttpReply& error) override {
    return server_event("error", messages_error(error).body);
  }

  std::string finish(const Usage&) override {
    return is_whole_ ? server_event("message_stop", R"({"type":"message_stop"})") : "";
  }

  std::string whole(std::vector<WholeAnswer> answers, const Usage&) override {
    const WholeAnswer& answer = answers[0];
    std::string blocks;
    int64_t n_calls = 0;
    for (const AnswerPart& part : answer.parts) {
      if (!blocks.empty()) blocks += ",";
      if (part.kind == AnswerPart::Kind::kReasoning) {
        blocks += dump(thinking_block(part.text));
      } else if (part.kind == AnswerPart::Kind::kText) {
        blocks += dump(text_block(part.text));
      } else if (!is_object(part.call.arguments)) {  // cut short: no input that could be used
        blocks += dump(text_block(part.call.name + part.call.arguments));
      } else {
        blocks += with(dump({{"type", "tool_use"},
                             {"id", call_id(head_.id, 0, n_calls++)},
                             {"name", part.call.name}}),
                       "input", part.call.arguments);
      }
    }
    std::string body = with(dump(envelope()), "content", "[" + blocks + "]");
    const OrderedJson stop = stop_json(*answer.outcome, n_calls > 0);
    for (const auto& [key, value] : stop.items()) body = with(std::move(body), key, dump(value));
    body = with(std::move(body), "usage", dump(usage_json(usage_of(*answer.outcome))));
    return with_measures(std::move(body), request_.request, *answer.outcome);
  }

 private:
  static OrderedJson text_block(const std::string& text) {
    return {{"type", "text"}, {"text", text}};
  }
  static OrderedJson thinking_block(const std::string& text) {
    return {{"type", "thinking"}, {"thinking", text}, {"signature", ""}};
  }

  // Behind the block before it.
  std::string start_block(AnswerPart::Kind kind, const OrderedJson& block) {
    std::string out = stop_block();
    kind_ = kind;
    is_open_ = true;
    return out + server_event("content_block_start", dump({{"type", "content_block_start"},
                                                           {"index", index_},
                                                           {"content_block", block}}));
  }
  std::string stop_block() {
    if (!std::exchange(is_open_, false)) return {};
    return server_event("content_block_stop",
                        dump({{"type", "content_block_stop"}, {"index", index_++}}));
  }

  OrderedJson envelope() const {
    return {{"id", head_.id}, {"type", "message"}, {"role", "assistant"}, {"model", head_.model}};
  }

  static OrderedJson stop_json(const Outcome& outcome, bool has_calls) {
    const Generation& g = outcome.generation;
    const bool is_cut = g.finish_reason == FinishReason::kLength;
    const char* reason = is_cut            ? "max_tokens"
                         : !g.stop.empty() ? "stop_sequence"
                         : has_calls       ? "tool_use"
                                           : "end_turn";
    OrderedJson stop = {{"stop_reason", reason}, {"stop_sequence", nullptr}};
    if (!is_cut && !g.stop.empty()) stop["stop_sequence"] = g.stop;
    return stop;
  }

  // What was found in the prefix cache is not among the input's tokens.
  static OrderedJson usage_json(const Usage& usage) {
    return {{"input_tokens", usage.n_prompt - usage.n_cached},
            {"cache_creation_input_tokens", 0},
            {"cache_read_input_tokens", usage.n_cached},
            {"output_tokens", usage.n_generated}};
  }

  AnswerHead head_;
  const ApiRequest& request_;
  // Of a stream: the block that is being written.
  AnswerPart::Kind kind_ = AnswerPart::Kind::kText;
  bool is_open_ = false, is_whole_ = false;
  int64_t index_ = 0, n_calls_ = 0;
};

}  // namespace

std::unique_ptr<AnswerWriter> make_messages_writer(AnswerHead head, const ApiRequest& request) {
  return std::make_unique<MessagesWriter>(std::move(head), request);
}

}  // namespace ei::server
