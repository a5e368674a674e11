#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "apps/server/api_error.h"
#include "ei/engine/engine.h"
#include "ei/engine/sequence.h"
#include "ei/io/json.h"
#include "ei/text/answer_parser.h"

namespace ei::server {

// What the server does where a request says nothing, and what a request may ask for at most.
struct RequestDefaults {
  bool on_gpu = false;  // what computes
  PrefillPolicy prefill;
  DecodePolicy decode;
  SamplingParams sampling;
  int64_t chat_max_tokens = 2048;
  int64_t max_choices = 128;         // n times the number of prompts
  int64_t max_dimensions = 1 << 20;  // of an embedding
  size_t max_json_bytes = 64 << 20;
  bool tools = false;  // whether the model's chat template knows any
};

// What a chat template is given.
struct Conversation {
  OrderedJson messages;   // in OpenAI's form, a list of at least one
  OrderedJson variables;  // chat_template_kwargs and tools
  bool add_generation_prompt = true;
};

// A text to be tokenized.
struct Text {
  std::string text;
  bool add_special_tokens = true;
};

using Prompt = std::variant<std::string, std::vector<int32_t>>;

// The form that an answer must have.
struct AnswerForm {
  enum class Kind { kAny, kObject, kSchema, kCalls } kind = Kind::kAny;
  OrderedJson schema;  // of kSchema
  // Functions that are called, a list: of kCalls; of kObject and kSchema those that may be instead.
  OrderedJson functions;
  bool one_call = false;
  std::string_view field = "response_format";  // of the request, that asks for kObject or kSchema
};

// The API that a request for answers is of.
enum class Dialect { kChat, kCompletions, kMessages, kResponses };

// A request for answers, checked: whichever API it is of, it asks for a chat or a completion.
struct ApiRequest {
  Dialect dialect = Dialect::kChat;
  Conversation conversation;    // of a chat
  std::vector<Prompt> prompts;  // of a completion, at least one

  AnswerForm form;
  AnswerParser::Options parts;  // of a chat's answer

  Request request;  // all but the prompt
  SequenceOptions options;
  int64_t n = 1;
  int64_t best_of = 1;             // answers made, of which the n likeliest are given
  bool add_special_tokens = true;  // to the prompts of a completion that are text
  bool echo = false;
  bool stream = false;
  bool include_usage = false;
  bool return_progress = false;
  int64_t timeout_ms = 0;  // 0: none of its own
  OrderedJson echoed;      // of kResponses: what the answer repeats
  std::vector<std::string> unknown_fields;
};

// A request for vectors of texts.
struct EmbeddingRequest {
  std::vector<Prompt> inputs;  // at least one
  Request request;             // all but the prompt
  SequenceOptions::Pooling pooling = SequenceOptions::Pooling::kLast;
  bool add_special_tokens = true;
  bool base64 = false;     // floats as they lie in memory; else numbers
  int64_t dimensions = 0;  // of a vector's beginning; 0: all
  int64_t timeout_ms = 0;
};

// What one of the smaller requests gives, and the fields of it that nobody knows.
template <class T>
struct Given {
  T value;
  std::vector<std::string> unknown_fields;
};

// Throw ApiError (400) naming the field, what is allowed and what was found. What becomes of every
// field is said in fields.h.
ApiRequest parse_chat_request(std::string_view body, const RequestDefaults& defaults);
ApiRequest parse_completion_request(std::string_view body, const RequestDefaults& defaults);
ApiRequest parse_messages_request(std::string_view body, const RequestDefaults& defaults);
ApiRequest parse_responses_request(std::string_view body, const RequestDefaults& defaults);
Given<EmbeddingRequest> parse_embeddings_request(std::string_view body,
                                                 const RequestDefaults& defaults);
// {"messages": [...]} with what templates take beside them, for /apply-template.
Given<Conversation> parse_conversation_request(std::string_view body,
                                               const RequestDefaults& defaults);
// The like of /v1/messages, for /v1/messages/count_tokens.
Given<Conversation> parse_count_tokens_request(std::string_view body,
                                               const RequestDefaults& defaults);
// {"content" or "prompt" or "text": "..."}, or the like of /apply-template; and {"tokens": [...]}.
Given<std::variant<Text, Conversation>> parse_text_request(std::string_view body,
                                                           const RequestDefaults& defaults);
Given<std::vector<int32_t>> parse_tokens_request(std::string_view body,
                                                 const RequestDefaults& defaults);

}  // namespace ei::server
