#pragma once

#include <memory>
#include <string>
#include <vector>

#include "apps/server/answer_json.h"
#include "apps/server/http_reply.h"
#include "apps/server/request.h"
#include "ei/engine/scheduler.h"
#include "ei/io/json.h"
#include "ei/text/answer_parser.h"

namespace ei::server {

// What answers say beside themselves.
struct AnswerHead {
  std::string id;  // of the request, without what an API puts in front
  std::string model;
  int64_t created = 0;  // seconds since 1970
};

// An answer with nothing to come.
struct WholeAnswer {
  std::vector<AnswerPart> parts;
  std::string scores;  // JSON
  const Outcome* outcome = nullptr;
};

// Puts the answers to one request in the words of an API. All texts it makes are JSON: events of a
// stream with what frames them, or a body. `i`: which answer.
class AnswerWriter {
 public:
  virtual ~AnswerWriter() = default;

  virtual std::string begin(size_t n_answers, int64_t n_prompt) = 0;
  virtual std::string progress(size_t, const OrderedJson&) { return {}; }
  // What of the answer is certain by now; `scores`: JSON.
  virtual std::string add(size_t i, std::vector<AnswerPart> parts, const std::string& scores) = 0;
  virtual std::string end(size_t i, const Outcome& outcome) = 0;
  virtual std::string fail(const HttpReply& error) = 0;
  virtual std::string finish(const Usage& usage) = 0;
  virtual std::string ping() const { return ": still working\n\n"; }

  virtual std::string whole(std::vector<WholeAnswer> answers, const Usage& usage) = 0;
};

// The writer of the request's dialect. `request` outlives it.
std::unique_ptr<AnswerWriter> make_writer(AnswerHead head, const ApiRequest& request);
std::unique_ptr<AnswerWriter> make_openai_writer(AnswerHead head, const ApiRequest& request);
std::unique_ptr<AnswerWriter> make_messages_writer(AnswerHead head, const ApiRequest& request);
std::unique_ptr<AnswerWriter> make_responses_writer(AnswerHead head, const ApiRequest& request);

}  // namespace ei::server
