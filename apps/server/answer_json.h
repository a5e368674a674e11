#pragma once

#include <span>
#include <string>
#include <vector>

#include "ei/engine/scheduler.h"
#include "ei/io/json.h"
#include "ei/text/answer_parser.h"

namespace ei::server {

// Tokens of all the answers to a request; a prompt counts once.
struct Usage {
  int64_t n_prompt = 0, n_cached = 0, n_generated = 0;
};
Usage usage_of(const Outcome& outcome);  // of a single one

std::string dump(const OrderedJson& json);
bool is_object(std::string_view text);  // of JSON
// An event of a stream.
std::string server_event(std::string_view name, std::string_view json);
// `object` with one more field, whose value is JSON text already.
std::string with(std::string object, std::string_view key, std::string_view value);

// Adds parts behind others; text goes on where text ended.
void append_parts(std::vector<AnswerPart>& parts, std::vector<AnswerPart> more);

// The id of a choice's call: nine letters and digits, as some templates insist.
std::string call_id(const std::string& answer, size_t choice, int64_t index);
// A call and an answer's message in OpenAI's form.
OrderedJson call_json(const ToolCall& call, const std::string& id);
OrderedJson message_json(std::span<const AnswerPart> parts, const std::string& answer,
                         size_t choice);

// What of a chunk says a part: {"delta": ...}, of a call one with its name and one with what there
// is of its arguments. `n_calls` were there before.
void append_deltas(std::vector<OrderedJson>& contents, AnswerPart part, const std::string& answer,
                   size_t choice, int64_t& n_calls);

const char* reason_name(FinishReason reason);
void log_outcome(const std::string& id, const Outcome& outcome);
OrderedJson timings_json(const Outcome& outcome);
OrderedJson sparsity_json(const Request& request, const Outcome& outcome);
// An object with both.
std::string with_measures(std::string object, const Request& request, const Outcome& outcome);

}  // namespace ei::server
