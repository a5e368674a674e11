#include <fmt/format.h>

#include <utility>

#include "apps/server/answer_json.h"
#include "apps/server/answer_writer.h"

namespace ei::server {
namespace {

using Kind = AnswerPart::Kind;

// Of /v1/responses: an answer is a list of items, what is thought, said and called, and every event
// of a stream says where it belongs.
class ResponsesWriter final : public AnswerWriter {
 public:
  ResponsesWriter(AnswerHead head, const ApiRequest& request)
      : head_(std::move(head)), request_(request) {}

  std::string begin(size_t, int64_t) override {
    const std::string response = dump(response_json("in_progress"));
    const std::string created = event("response.created", {}, "response", response);
    return created + event("response.in_progress", {}, "response", response);
  }

  std::string add(size_t, std::vector<AnswerPart> parts, const std::string&) override {
    std::string out;
    for (AnswerPart& part : parts) {
      if (part.kind == Kind::kCall || parts_.empty() ||
          (part.kind != Kind::kArguments && part.kind != parts_.back().kind)) {
        out += close("completed");
        parts_.push_back({.kind = part.kind, .text = {}, .call = {part.call.name, {}}});
        out += open();
      }
      AnswerPart& all = parts_.back();
      const std::string piece = part.kind == Kind::kCall ? part.call.arguments : part.text;
      (all.kind == Kind::kCall ? all.call.arguments : all.text) += piece;
      if (piece.empty()) continue;
      OrderedJson where = place();
      where["delta"] = piece;
      if (all.kind == Kind::kText) where["logprobs"] = OrderedJson::array();
      out += event(names().delta, where);
    }
    return out;
  }

  std::string end(size_t, const Outcome& outcome) override {
    const bool is_cut = outcome.generation.finish_reason == FinishReason::kLength;
    const std::string out = close(is_cut ? "incomplete" : "completed");
    return out + event(is_cut ? "response.incomplete" : "response.completed", {}, "response",
                       ended(outcome));
  }

  std::string fail(const HttpReply& error) override {
    const std::string out = close("incomplete");
    OrderedJson response = response_json("failed");
    const OrderedJson body = OrderedJson::parse(error.body);
    response["error"] = {{"code", error.status < 500 ? "invalid_prompt" : "server_error"},
                         {"message", body["error"]["message"]}};
    return out + event("response.failed", {}, "response", dump(response));
  }

  std::string finish(const Usage&) override { return {}; }

  std::string whole(std::vector<WholeAnswer> answers, const Usage&) override {
    parts_ = std::move(answers[0].parts);
    return ended(*answers[0].outcome);
  }

 private:
  // What the events of an item are called.
  struct Names {
    const char *delta, *done, *text;
  };
  Names names() const {
    switch (parts_.back().kind) {
      case Kind::kText:
        return {"response.output_text.delta", "response.output_text.done", "text"};
      case Kind::kReasoning:
        return {"response.reasoning_text.delta", "response.reasoning_text.done", "text"};
      default:
        break;
    }
    return {"response.function_call_arguments.delta", "response.function_call_arguments.done",
            "arguments"};
  }

  std::string event(const std::string& type, const OrderedJson& fields, std::string_view key = {},
                    std::string_view value = {}) {
    OrderedJson json = {{"type", type}, {"sequence_number", n_events_++}};
    if (!fields.is_null()) json.update(fields);
    return server_event(type, key.empty() ? dump(json) : with(dump(json), key, value));
  }

  // The last item: which it is, and for texts the part of it.
  OrderedJson place() const {
    const size_t i = parts_.size() - 1;
    OrderedJson place = {{"item_id", item_id(i)}, {"output_index", i}};
    if (parts_.back().kind != Kind::kCall) place["content_index"] = 0;
    return place;
  }

  std::string open() {
    is_open_ = true;
    const OrderedJson item = {{"output_index", parts_.size() - 1},
                              {"item", item_json(parts_.size() - 1, "in_progress")}};
    std::string out = event("response.output_item.added", item);
    if (parts_.back().kind == Kind::kCall) return out;
    OrderedJson part = place();
    part["part"] = part_json(parts_.back());
    return out + event("response.content_part.added", part);
  }

  std::string close(const char* status) {
    if (!std::exchange(is_open_, false)) return {};
    const AnswerPart& part = parts_.back();
    OrderedJson done = place();
    done[names().text] = part.kind == Kind::kCall ? part.call.arguments : part.text;
    if (part.kind == Kind::kCall) done["name"] = part.call.name;
    if (part.kind == Kind::kText) done["logprobs"] = OrderedJson::array();
    std::string out = event(names().done, done);
    if (part.kind != Kind::kCall) {
      OrderedJson whole = place();
      whole["part"] = part_json(part);
      out += event("response.content_part.done", whole);
    }
    const OrderedJson item = {{"output_index", parts_.size() - 1},
                              {"item", item_json(parts_.size() - 1, status)}};
    return out + event("response.output_item.done", item);
  }

  static OrderedJson part_json(const AnswerPart& part) {
    if (part.kind == Kind::kReasoning) return {{"type", "reasoning_text"}, {"text", part.text}};
    return {{"type", "output_text"},
            {"text", part.text},
            {"annotations", OrderedJson::array()},
            {"logprobs", OrderedJson::array()}};
  }

  std::string item_id(size_t i) const {
    const Kind kind = parts_[i].kind;
    const char* prefix = kind == Kind::kText ? "msg" : kind == Kind::kReasoning ? "rs" : "fc";
    return fmt::format("{}_{}_{}", prefix, head_.id, i);
  }

  // Of what is in progress the content is left out: it follows.
  OrderedJson item_json(size_t i, const char* status) const {
    const AnswerPart& part = parts_[i];
    OrderedJson item = {{"id", item_id(i)}, {"status", status}};
    if (part.kind == Kind::kCall) {
      item["type"] = "function_call";
      item["call_id"] = call_id(head_.id, 0, static_cast<int64_t>(i));
      item["name"] = part.call.name;
      item["arguments"] = part.call.arguments;
      return item;
    }
    item["content"] = OrderedJson::array();
    if (std::string_view(status) != "in_progress") item["content"].push_back(part_json(part));
    if (part.kind == Kind::kText) {
      item["type"] = "message";
      item["role"] = "assistant";
    } else {
      item["type"] = "reasoning";
      item["summary"] = OrderedJson::array();
    }
    return item;
  }

  OrderedJson response_json(const std::string& status) const {
    OrderedJson json = {{"id", "resp_" + head_.id},
                        {"object", "response"},
                        {"created_at", head_.created},
                        {"status", status},
                        {"error", nullptr},
                        {"incomplete_details", nullptr},
                        {"model", head_.model},
                        {"previous_response_id", nullptr},
                        {"store", false},
                        {"parallel_tool_calls", true},
                        {"tool_choice", "auto"},
                        {"tools", OrderedJson::array()},
                        {"instructions", nullptr},
                        {"metadata", OrderedJson::object()},
                        {"temperature", request_.request.sampling->temperature},
                        {"top_p", request_.request.sampling->top_p},
                        {"max_output_tokens", request_.request.max_tokens},
                        {"text", {{"format", {{"type", "text"}}}}}};
    json.update(request_.echoed);
    json["output"] = OrderedJson::array();
    for (size_t i = 0; i < parts_.size(); ++i) {
      const bool is_last = i + 1 == parts_.size();
      json["output"].push_back(
          item_json(i, is_last && status != "completed" ? "incomplete" : "completed"));
    }
    return json;
  }

  std::string ended(const Outcome& outcome) const {
    const bool is_cut = outcome.generation.finish_reason == FinishReason::kLength;
    OrderedJson response = response_json(is_cut ? "incomplete" : "completed");
    if (is_cut) response["incomplete_details"] = {{"reason", "max_output_tokens"}};
    const Usage usage = usage_of(outcome);
    response["usage"] = {
        {"input_tokens", usage.n_prompt},
        {"input_tokens_details", {{"cached_tokens", usage.n_cached}, {"cache_write_tokens", 0}}},
        {"output_tokens", usage.n_generated},
        {"output_tokens_details", {{"reasoning_tokens", 0}}},
        {"total_tokens", usage.n_prompt + usage.n_generated}};
    return with_measures(dump(response), request_.request, outcome);
  }

  AnswerHead head_;
  const ApiRequest& request_;
  std::vector<AnswerPart> parts_;
  bool is_open_ = false;
  int64_t n_events_ = 0;
};

}  // namespace

std::unique_ptr<AnswerWriter> make_responses_writer(AnswerHead head, const ApiRequest& request) {
  return std::make_unique<ResponsesWriter>(std::move(head), request);
}

}  // namespace ei::server
