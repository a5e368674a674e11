#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "apps/server/fields.h"
#include "apps/server/request.h"
#include "ei/base/fail.h"

namespace ei::server {

// What the parsers of all dialects share: each makes of its request one to /v1/chat/completions,
// which is then read as such.

inline constexpr size_t kMaxMessages = 16384;
inline constexpr size_t kMaxParts = 16384;  // of a message
inline constexpr size_t kMaxCalls = 4096;   // of a message

// Runs `f`; what it throws is a client's mistake.
template <class F>
auto checked(F f, std::initializer_list<Renamed> names = {}) {
  try {
    return f();
  } catch (const ApiError& error) {
    throw renamed(error, names);
  } catch (const FieldError& error) {
    const std::string place = error.where == "request" ? "" : error.where + ".";
    throw renamed({400, "invalid_request_error", error.what(), place + error.field}, names);
  } catch (const Error& error) {
    throw ApiError(400, "invalid_request_error", error.what());
  }
}

// The request, in the client's order; `unknown`: the fields that nobody knows.
OrderedJson parse_body(std::string_view body, const RequestDefaults& defaults, Endpoint endpoint,
                       std::vector<std::string>& unknown);

std::string text_of(const OrderedJson& json, const std::string& param);  // a string
std::string string_at(const OrderedJson& json, const char* key, const std::string& param);
std::string type_of(const OrderedJson& json);  // its "type", if that is a string
// Refuses calls, and what came of them, where the model's chat template knows no tools.
void require_tools(bool tools, const std::string& param);

// The fields that a chat obeys as well, by the same name.
OrderedJson shared_fields(const OrderedJson& json, Endpoint endpoint);
ApiRequest read_chat(const OrderedJson& json, const RequestDefaults& defaults);
Conversation read_conversation(const OrderedJson& json, const RequestDefaults& defaults);

}  // namespace ei::server
