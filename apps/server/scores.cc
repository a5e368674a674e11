#include "apps/server/scores.h"

#include <algorithm>

#include "ei/io/json.h"

namespace ei::server {
namespace {

void append(std::string& list, const OrderedJson& json) {
  if (!list.empty()) list += ',';
  list += json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

OrderedJson entry(const Tokenizer& tokenizer, const std::string& text, const TokenLogprob& token) {
  OrderedJson bytes = OrderedJson::array();
  for (const char c : tokenizer.token_bytes(token.token))
    bytes.push_back(static_cast<unsigned char>(c));
  return {{"token", text}, {"logprob", token.logprob}, {"bytes", std::move(bytes)}};
}

}  // namespace

void Scores::add(const TokenReport& report, int64_t& offset) {
  const std::string chosen = text(report.chosen.token);
  if (chat_) {
    OrderedJson json = entry(tokenizer_, chosen, report.chosen);
    json["top_logprobs"] = OrderedJson::array();
    for (const TokenLogprob& t : report.top)
      json["top_logprobs"].push_back(entry(tokenizer_, text(t.token), t));
    return append(content_, json);
  }
  OrderedJson top = OrderedJson::object();
  for (const TokenLogprob& t : report.top) {
    const std::string name = text(t.token);
    if (!top.contains(name)) top[name] = t.logprob;  // two ids may have one text: the likelier
  }
  if (!top.contains(chosen)) top[chosen] = report.chosen.logprob;
  append(scores_, report.chosen.logprob);
  append(tops_, top);
  add_place(report.chosen.token, offset);
}

void Scores::add_first(int32_t token, int64_t& offset) {
  append(scores_, nullptr);
  append(tops_, nullptr);
  add_place(token, offset);
}

void Scores::add_place(int32_t token, int64_t& offset) {
  append(tokens_, text(token));
  append(places_, offset);
  if (!tokenizer_.is_special(token))
    offset += std::ranges::count_if(tokenizer_.token_bytes(token),
                                    [](char c) { return (c & 0xC0) != 0x80; });
}

std::string Scores::json() const {
  if (chat_) return R"({"content":[)" + content_ + R"(],"refusal":null})";
  return R"({"tokens":[)" + tokens_ + R"(],"token_logprobs":[)" + scores_ +
         R"(],"top_logprobs":[)" + tops_ + R"(],"text_offset":[)" + places_ + "]}";
}

}  // namespace ei::server
