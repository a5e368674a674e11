#pragma once

#include <span>
#include <string>
#include <vector>

#include "ei/engine/scheduler.h"
#include "ei/io/json.h"
#include "ei/text/answer_parser.h"

namespace ei::server {

std::string dump(const OrderedJson& json);

// Adds parts behind others; text goes on where text ended.
void append_parts(std::vector<AnswerPart>& parts, std::vector<AnswerPart> more);

// The id of a choice's call: nine letters and digits, as some templates insist.
std::string call_id(const std::string& answer, size_t choice, int64_t index);
// A call and an answer's message in OpenAI's form.
OrderedJson call_json(const ToolCall& call, const std::string& id);
OrderedJson message_json(std::span<const AnswerPart> parts, const std::string& answer,
                         size_t choice);

// What of a chunk says a part: {"delta": ...}, of a call one with its name and one with its
// arguments. `n_calls` were there before.
void append_deltas(std::vector<OrderedJson>& contents, AnswerPart part, const std::string& answer,
                   size_t choice, int64_t& n_calls);

const char* reason_name(FinishReason reason);
void log_outcome(const std::string& id, const Outcome& outcome);
OrderedJson timings_json(const Outcome& outcome);
OrderedJson sparsity_json(const Request& request, const Outcome& outcome);

}  // namespace ei::server
