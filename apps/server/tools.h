#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "apps/server/request.h"
#include "ei/grammar/matcher.h"
#include "ei/text/tokenizer.h"

namespace ei::server {

[[noreturn]] void bad(const std::string& param, const std::string& what);
bool given(const OrderedJson& json, std::string_view key);  // and not null

// The fields that say what an answer may be: tools, tool_choice, parallel_tool_calls and
// response_format. All throw ApiError (400) naming the field.
// The tools for the chat template: none where they are not to be used.
OrderedJson tools_of(const OrderedJson& json, const RequestDefaults& defaults);
// Of a chat whose conversation was read.
void read_tool_choice(const OrderedJson& json, ApiRequest& out);
void read_response_format(const OrderedJson& json, ApiRequest& out);
// The field that leaves an answer so few tokens.
std::string param_of(const AnswerForm& form);
// What a form of the answer rules out beside it.
void check_form(const ApiRequest& request);

// How the answer to a chat's prompt is taken apart: control tokens may be what parts it.
void read_parts(std::span<const int32_t> prompt, const Tokenizer& tokenizer,
                const AnswerFormat& format, ApiRequest& request);

// Grammars of forms over one vocabulary; those of late are kept. Any thread.
class Grammars {
 public:
  Grammars(std::shared_ptr<const grammar::TokenTrie> tokens, ToolFormat tools)
      : tokens_(std::move(tokens)), tools_(tools) {}

  // Null: anything goes. Throws ApiError (400) naming the keyword that is not supported.
  std::shared_ptr<grammar::TokenGrammar> of(const AnswerForm& form);

 private:
  const std::shared_ptr<const grammar::TokenTrie> tokens_;
  const ToolFormat tools_;
  std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<grammar::TokenGrammar>> known_;
};

// The texts of a form. Throws Error naming what is not supported.
grammar::Grammar grammar_of(const AnswerForm& form, ToolFormat tools);

}  // namespace ei::server
